"""The hand-written gradient of attention, and the masks of dropout."""

import pytest
import torch
import torch.nn.functional as F

from model.attention import BatchedAttention, eager_attention, fused_attention
from model.dropout import Dropout, draw_kept

B, H, T, K = 3, 5, 29, 7


def tensors(dtype=torch.float32, requires_grad=True):
    """q, k and v as a layer makes them, views of (B, T, H K), and a mask that hides the ends of two rows."""
    generator = torch.Generator().manual_seed(3)
    made = (torch.randn(B, T, H * K, generator=generator).mul_(2).to(dtype) for _ in range(3))
    parts = [x.view(B, T, H, K).transpose(1, 2).requires_grad_(requires_grad) for x in made]
    return parts, (torch.arange(T) < torch.tensor((29, 17, 6))[:, None])[:, None, None, :]


def gradients(attention, parts, mask, dropout=0.0):
    """The result and the gradients of a wavy sum of it, seed fixed."""
    for x in parts:
        x.grad = None
    torch.manual_seed(5)
    mixed, _ = attention(*parts, mask, dropout)
    (mixed.float() * torch.linspace(-3, 3, mixed.numel()).sin().view(mixed.shape)).sum().backward()
    return mixed.detach(), *(x.grad for x in parts)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_written_gradient_is_that_of_the_book(dropout, masked, masks_of_torch):
    """Eager attention is differentiated by autograd; measured: at most 8e-7 of the largest entry."""
    parts, mask = tensors()
    mask = mask if masked else None
    found, wanted = (gradients(a, parts, mask, dropout) for a in (fused_attention, eager_attention))
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 0.1
        assert (a - b).abs().max() <= 2e-6 * b.abs().max()
    if masked:
        assert not found[2][1, :, 17:].any()  # a key that is not looked at learns nothing


def test_in_16_bits_it_stays_near():
    """Measured: at most 6e-3 of the largest entry, bf16 holding 8 bits."""
    parts, mask = tensors(torch.bfloat16)
    wanted = gradients(eager_attention, [x.detach().float().requires_grad_() for x in parts], mask)
    for a, b in zip(gradients(fused_attention, parts, mask), wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).abs().max() <= 2e-2 * b.abs().max()


@pytest.mark.parametrize("dtype, near", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_the_gradient_follows_what_dropout_took_piece_by_piece(dtype, near, monkeypatch):
    """With the identity as values the result is P o M itself, so M can be read off and given to autograd.

    Measured: at most 7e-7 and 6e-3 of the largest entry.
    """
    monkeypatch.setattr("model.attention.PIECE", 2 * T * T)  # two heads at a time
    generator, dropout = torch.Generator().manual_seed(4), 0.3
    query, key = (torch.randn(B, H, T, T, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    value = torch.eye(T).expand(B, H, T, T).to(dtype).requires_grad_()
    mask = (torch.arange(T) < torch.tensor((29, 17, 6))[:, None])[:, None, None, :]
    found = gradients(fused_attention, (query, key, value), mask, dropout)
    kept = found[0].float() > 0
    seen = mask.expand(B, H, T, T)
    assert kept[seen].float().mean() == pytest.approx(1 - dropout, abs=0.02) and not kept[~seen].any()
    assert len({tuple(row) for row in kept[0].flatten(1).tolist()}) == H  # no two heads share a mask
    factor = kept / (1 - dropout)

    def book(query, key, value, mask, _):
        scores = (query @ key.transpose(-1, -2) * T**-0.5).masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) * factor) @ value, None

    wide = [x.detach().float().requires_grad_() for x in (query, key, value)]
    for a, b in zip(found, gradients(book, wide, mask), strict=True):
        assert a.dtype == dtype and b.abs().max() > 0.1
        assert (a.float() - b).abs().max() <= near * b.abs().max()


def test_it_runs_where_something_will_be_differentiated_and_there_alone(monkeypatch):
    calls, apply = [], BatchedAttention.apply
    monkeypatch.setattr(BatchedAttention, "apply", lambda *args: calls.append(1) or apply(*args))
    parts, mask = tensors()
    learned, _ = fused_attention(*parts, mask, 0.0)
    assert calls == [1]
    with torch.no_grad():
        answered, _ = fused_attention(*parts, mask, 0.0)
    frozen, _ = fused_attention(*tensors(requires_grad=False)[0], mask, 0.0)
    assert calls == [1] and torch.equal(frozen, answered)
    assert (learned - answered).abs().max() <= 1e-6 * answered.abs().max()


def test_a_second_derivative_is_refused_instead_of_wrong():
    parts, mask = tensors()
    first, = torch.autograd.grad(fused_attention(*parts, mask, 0.0)[0].square().sum(), parts[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("probability", [0.1, 0.37, 0.9])
def test_masks_keep_the_share_they_should(probability):
    """Of 629,805 numbers in a shape that four does not divide; five standard deviations."""
    torch.manual_seed(2)
    kept = draw_kept(torch.empty(3, 347, 605, dtype=torch.bfloat16), probability)
    assert kept.shape == (3, 347, 605) and kept.dtype == torch.bfloat16
    dropped = kept.eq(0).double().flatten()[:629_804]
    allowed = 5 * (probability * (1 - probability) / (len(dropped) / 4)) ** 0.5
    assert (dropped.view(-1, 4).mean(0) - probability).abs().max() < allowed  # each quarter of the 64 bits
    assert abs((dropped[1:] * dropped[:-1]).mean() - probability**2) < allowed  # neighbours know nothing of each other
    exact = draw_kept(torch.empty(64), probability)
    assert exact[exact > 0].unique().tolist() == pytest.approx([1 / (1 - probability)], rel=2e-4)


def test_masks_follow_the_seed():
    x = torch.ones(7, 11)
    torch.manual_seed(1)
    first, second = draw_kept(x, 0.5), draw_kept(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(draw_kept(x, 0.5), first) and not torch.equal(first, second)


def test_the_layer_drops_in_training_alone_and_its_gradient_follows_the_mask():
    layer, x = Dropout(0.25), torch.ones(31, 17, requires_grad=True)
    assert layer.eval()(x) is x and Dropout(0.0).train()(x) is x
    y = layer.train()(x)
    y.sum().backward()
    y = y.detach()
    assert torch.equal(x.grad, y) and 0 < y.eq(0).float().mean() < 0.5
    assert not Dropout(1.0).train()(x).any()
    assert repr(layer) == repr(torch.nn.Dropout(0.25)).replace(", inplace=False", "")
    assert y.max().item() == pytest.approx(F.dropout(x, 0.25).max().item(), rel=1e-4)
