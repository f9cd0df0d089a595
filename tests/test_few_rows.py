"""4-bit products of a few rows: the fused kernel computes what reading the weight back does, and changes nothing."""

import pickle
from copy import copy, deepcopy

import pytest
import torch
import torch.nn as nn

from model import few_rows
from model.few_rows import MOST_ROWS, FewRows, has_kernel
from model.quant import FourBit, FourBitLinear, dense_weight

M, N = 96, 192


def layer(name="nf4", precision="bf16", outputs=M, inputs=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = FourBitLinear(inputs, outputs, nn.Parameter(torch.randn(outputs, generator=generator)), FourBit.named(name, precision))
    linear.fill(torch.randn(outputs, inputs, generator=generator))
    return linear


@pytest.mark.parametrize("name", ["nf4", "nf4-single", "fp4"])
@pytest.mark.parametrize("shape", [(1, N), (1, 1, N), (3, 7, N), (MOST_ROWS, N)], ids=str)
def test_the_kernel_multiplies_by_the_weight_as_it_is_rounded(name, shape):
    linear = layer(name)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    wanted = x.double() @ dense_weight(linear).double().t() + linear.bias.double()
    with torch.no_grad():
        y = linear(x)
    assert (linear.for_few_rows is not None) == has_kernel()
    assert y.shape == (*shape[:-1], M) and y.dtype == torch.bfloat16
    # absmax, each weight, the product, the bias and their sum are rounded to bf16, by 2⁻⁹ of themselves at most
    size = x.double().abs() @ dense_weight(linear).double().abs().t() + linear.bias.double().abs()
    assert ((y.double() - wanted).abs() <= size * 2**-7).all()
    assert (y.double() - wanted).abs().max() > 0


def test_being_used_changes_neither_the_weight_nor_its_file_nor_its_gradient():
    linear, twin = layer(), layer()
    many, few = torch.randn(MOST_ROWS + 1, N).to(torch.bfloat16), torch.randn(5, N).to(torch.bfloat16)
    with torch.no_grad():
        linear(few)
    assert torch.equal(dense_weight(linear), dense_weight(twin))
    packed, other = linear.packed_tensors(), twin.packed_tensors()
    assert packed.keys() == other.keys() and all(torch.equal(packed[key], other[key]) for key in packed)
    assert linear.state_dict().keys() == twin.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(linear(many), twin(many)) and twin.for_few_rows is None
    one, two = few.clone().requires_grad_(), few.clone().requires_grad_()
    linear(one).sum().backward()
    twin(two).sum().backward()
    assert torch.equal(one.grad, two.grad) and twin.for_few_rows is None  # learning never takes the kernel


def test_a_weight_that_is_filled_again_is_packed_again():
    linear, other = layer(seed=0), layer(seed=5)
    few = torch.randn(5, N).to(torch.bfloat16)
    with torch.no_grad():
        first, wanted = linear(few), other(few)
        linear.bias = other.bias
        linear.fill_packed(other.packed_tensors())
        assert not torch.equal(first, wanted) and torch.equal(linear(few), wanted)
        linear.fill(dense_weight(layer(seed=0)))
        assert not torch.equal(linear(few), wanted)


@pytest.mark.parametrize("what", [{"precision": "fp32"}, {"outputs": 33}, {"inputs": 96}, {"inputs": 1, "outputs": 1}], ids=str)
def test_what_the_kernel_cannot_do_goes_the_other_way(what, monkeypatch):
    monkeypatch.setattr(few_rows, "has_kernel", lambda: True)
    linear = layer(**what)
    x = torch.randn(2, linear.in_features)
    with torch.no_grad():
        y = linear(x)
    assert linear.for_few_rows is None
    wanted = x @ dense_weight(linear).t() + linear.bias
    torch.testing.assert_close(y.float(), wanted, atol=0.2, rtol=0.02)


@pytest.mark.parametrize("name", ["nf4", "nf4-single", "fp4"])
@pytest.mark.parametrize("shape", [(1, 1, N), (3, 7, N)], ids=str)
def test_called_directly_the_kernel_says_what_bitsandbytes_says(name, shape):
    """To the bit; of rows that do not lie one after the other too."""
    if not has_kernel():
        return  # the tests above then hold the other way
    from bitsandbytes import functional

    linear = layer(name)
    x = torch.randn(*shape[:-1], 2 * N, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)[..., ::2]
    packed, state = functional._convert_weight_packed_for_cpu(linear.weight.data, copy(linear.weight.quant_state))
    wanted = functional.gemv_4bit(x.contiguous(), packed, state=state)
    assert torch.equal(FewRows(linear.weight.data, linear.weight.quant_state)(x), wanted)


def test_a_layer_that_has_answered_can_be_copied():
    linear, few = layer(), torch.randn(5, N).to(torch.bfloat16)
    with torch.no_grad():
        wanted = linear(few)
        copies = [deepcopy(linear), pickle.loads(pickle.dumps(linear))]
        del linear  # a copy asks numbers of its own
        assert all(torch.equal(other(few), wanted) for other in copies)


def test_nothing_is_asked_of_the_kernel_for_no_rows():
    linear = layer()
    with torch.no_grad():
        assert linear(torch.zeros(0, N)).shape == (0, M)
    assert linear.for_few_rows is None


def test_a_copy_is_made_for_the_kernel_and_the_state_is_left_alone():
    if not has_kernel():
        return  # nothing to pack for on this CPU; the tests above then hold the other way
    linear = layer()
    state = dict(vars(linear.weight.quant_state))
    FewRows(linear.weight.data, linear.weight.quant_state)
    assert vars(linear.weight.quant_state).keys() == state.keys()
    assert all(vars(linear.weight.quant_state)[key] is value for key, value in state.items())
