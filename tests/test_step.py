"""One optimizer step: its gradient, its loss, what it refuses."""

import math

import pytest
import torch

from common.errors import InputError
from data.windows import WindowSet, WindowSettings
from answering.reader import Reader, ReaderSettings
from tests.tiny_run import WINDOW, examples
from training.optimizer import make_optimizer
from model.precision import choose_device, choose_precision, make_scaler
from data.windows import NO_LABEL
from training.step import NonFinite, accumulate, span_loss, train_step

CPU = torch.device("cpu")


@pytest.fixture
def reader(tiny_folder):
    settings = ReaderSettings(WindowSettings(WINDOW, overlap=20))
    return Reader.load(tiny_folder, settings=settings, device="cpu", precision="fp32")


@pytest.fixture
def windows(reader):
    found = WindowSet(list(examples(range(9))), reader.tokenizer, reader.settings.windows, with_labels=True)
    assert len(set(found.length)) >= 4  # ragged, or the tests below show nothing
    assert (found.label == 0).all(1).any() and (found.label > 0).all(1).any()
    return found


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def distance(found, wanted):
    """Norm of the difference of two gradients, relative to the second's."""
    squares = sum(((found[name].double() - wanted[name].double()) ** 2).sum() for name in wanted)
    return math.sqrt(squares / sum((wanted[name].double() ** 2).sum() for name in wanted))


def accumulated(reader, windows, chosen, max_tokens, precision="fp32"):
    reader.model.zero_grad(set_to_none=True)
    scaler = make_scaler(CPU, precision)
    result = accumulate(reader.model, windows, chosen, max_tokens, device=CPU, precision=precision, scaler=scaler)
    return result, gradients(reader.model)


def step(reader, windows, optimizer, chosen, *, rate=0.01, clip=1.0, precision="fp32", scaler=None, max_tokens=200):
    return train_step(
        reader.model, optimizer, scaler or make_scaler(CPU, precision), windows, chosen, learning_rate=rate,
        max_tokens=max_tokens, clip=clip, device=CPU, precision=precision,
    )


def naive(reader, windows, chosen):
    """Loss and gradient one window at a time, without padding, summed in double precision."""
    total, sums = 0.0, {name: torch.zeros_like(p, dtype=torch.float64) for name, p in reader.model.named_parameters()}
    for window in chosen:
        reader.model.zero_grad(set_to_none=True)
        batch = {name: torch.from_numpy(array) for name, array in windows.fill([window]).items()}
        logits = reader.model(batch["input_ids"], batch["token_type_ids"])
        places = [0, *batch["answer_mask"][0].nonzero().flatten().tolist()]
        loss = 0
        spans = [span for span in batch["label"][0].tolist() if span != [NO_LABEL, NO_LABEL]]
        for side in (0, 1):
            log_p = torch.log_softmax(logits[side][0, places].double(), 0)
            for span in spans:
                loss = loss - log_p[places.index(span[side])] / 2 / len(spans)
        loss.backward()
        total += loss.item()
        for name, p in reader.model.named_parameters():
            sums[name] += p.grad.double()
    return total / len(chosen), {name: value / len(chosen) for name, value in sums.items()}


@pytest.mark.parametrize("count", [1, 7, 13])
@pytest.mark.parametrize("max_tokens", [1, 70, 150, 333, 10**6])
def test_any_split_gives_the_gradient_of_the_naive_loop(reader, windows, count, max_tokens, monkeypatch):
    # in double precision throughout, so that no rounding hides a mistake
    reader.model.double()
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    chosen = torch.randperm(len(windows), generator=torch.Generator().manual_seed(count)).numpy()[:count]
    loss, wanted = naive(reader, windows, chosen)
    (found_loss, tokens, padded), found = accumulated(reader, windows, chosen, max_tokens)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    assert distance(found, wanted) < 1e-13
    assert tokens == windows.length[chosen].sum() <= padded


@pytest.mark.parametrize("max_tokens", [1, 70, 150, 333])
def test_any_split_gives_the_gradient_of_the_whole_batch(reader, windows, max_tokens):
    chosen = torch.arange(len(windows)).numpy()
    (loss, _, _), whole = accumulated(reader, windows, chosen, 10**9)
    (split_loss, _, _), split = accumulated(reader, windows, chosen, max_tokens)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    assert distance(split, whole) < 2e-6  # the rounding of fp32
    _, fewer = accumulated(reader, windows, chosen[:-1], max_tokens)
    assert distance(fewer, whole) > 1e-3  # the measure sees one window more or less


def test_checkpointing_changes_no_gradient_with_dropout(tiny_folder, windows):
    found = []
    for checkpointing in (False, True):
        model = Reader.load(tiny_folder, settings=ReaderSettings(windows.settings), device="cpu", precision="fp32",
                            dropout=0.1, attention_dropout=0.1)
        model.model.bert.encoder.gradient_checkpointing = checkpointing
        model.model.train()
        torch.manual_seed(5)
        found.append(accumulated(model, windows, torch.arange(6).numpy(), 200))
    assert found[0][0] == found[1][0]
    assert distance(found[1][1], found[0][1]) < 1e-6


def test_span_loss_by_hand():
    start = torch.tensor([[0.5, 9.0, 1.0, -1.0, 9.0], [2.0, 9.0, 0.0, 9.0, 9.0]])
    end = torch.tensor([[0.25, 9.0, 0.0, 3.0, 9.0], [1.0, 9.0, -2.0, 9.0, 9.0]])
    mask = torch.tensor([[False, False, True, True, False], [False, False, True, False, False]])
    label = torch.tensor([[[2, 3]], [[0, 0]]])
    wanted = (
        math.log(math.exp(0.5) + math.exp(1.0) + math.exp(-1.0)) - 1.0
        + math.log(math.exp(0.25) + math.exp(0.0) + math.exp(3.0)) - 3.0
        + math.log(math.exp(2.0) + math.exp(0.0)) - 2.0
        + math.log(math.exp(1.0) + math.exp(-2.0)) - 1.0
    ) / 2
    assert span_loss(start, end, mask, label).item() == pytest.approx(wanted, rel=1e-6)
    assert not mask[:, 0].any()  # the caller's mask is left alone


def test_span_loss_is_the_mean_over_references():
    start, end = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(5)).double()
    mask = torch.ones(3, 7, dtype=torch.bool)
    spans = [[(2, 3), (2, 5), (4, 5)], [(0, 0), (6, 6)], [(1, 4)]]
    label = torch.full((3, 3, 2), NO_LABEL)
    for row, found in enumerate(spans):
        label[row, : len(found)] = torch.tensor(found)
    wanted = 0.0
    for row, found in enumerate(spans):
        for first, last in found:
            alone = torch.tensor([[[first, last]]])
            wanted += span_loss(*(x[row : row + 1] for x in (start, end, mask)), alone).item() / len(found)
    assert span_loss(start, end, mask, label).item() == pytest.approx(wanted, rel=1e-6)


def test_padding_changes_no_loss(reader, windows):
    short = int(windows.length.argmin())
    batch, alone = (
        {name: torch.from_numpy(array) for name, array in windows.fill(chosen).items()}
        for chosen in ([short, int(windows.length.argmax())], [short])
    )
    assert batch["input_ids"].shape[1] > alone["input_ids"].shape[1]

    def loss(which):
        logits = reader.model(which["input_ids"], which["token_type_ids"], which["attention_mask"])
        return span_loss(*(x[:1] for x in logits), which["answer_mask"][:1], which["label"][:1]).item()

    assert loss(batch) == pytest.approx(loss(alone), rel=1e-6)
    batch["input_ids"][0, int(windows.length[short]):] = 77  # whatever stands on padding
    assert loss(batch) == pytest.approx(loss(alone), rel=1e-6)


def test_clip_bounds_the_gradient_and_reports_the_norm_before(reader, windows):
    chosen = torch.arange(7).numpy()
    _, raw = accumulated(reader, windows, chosen, 200)
    norm = math.sqrt(sum((g.double() ** 2).sum() for g in raw.values()))
    for clip, left in ((norm / 4, norm / 4), (norm * 4, norm)):
        result = step(reader, windows, make_optimizer(reader.model, 0.01), chosen, rate=0.0, clip=clip)
        assert result.grad_norm == pytest.approx(norm, rel=1e-5)
        after = math.sqrt(sum((g.double() ** 2).sum() for g in gradients(reader.model).values()))
        assert after == pytest.approx(left, rel=1e-5)
    assert (result.windows, result.updated) == (7, True)


def test_first_update_is_adamw(reader, windows):
    before = {name: p.detach().clone() for name, p in reader.model.named_parameters()}
    rate, decay = 0.01, 0.5
    step(reader, windows, make_optimizer(reader.model, decay), torch.arange(7).numpy(), rate=rate, clip=1e9)
    for name, p in reader.model.named_parameters():
        kept = before[name] * (1.0 if name.endswith(("bias", "LayerNorm.weight")) else 1 - rate * decay)
        # after one step both moments, freed of their bias, are the gradient and its square
        wanted = kept - rate * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_groups_may_scale_the_rate(reader, windows):
    optimizer = make_optimizer(reader.model, 0.01)
    optimizer.param_groups[1]["scale"] = 0.25
    step(reader, windows, optimizer, torch.arange(3).numpy(), rate=0.008)
    assert [group["lr"] for group in optimizer.param_groups] == [0.008, 0.002]


def snapshot(model, optimizer):
    state = optimizer.state_dict()["state"]
    tensors = list(model.state_dict().values()) + [value for entry in state.values() for value in entry.values()]
    return [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_non_finite_stops_before_the_update(reader, windows, fault):
    optimizer = make_optimizer(reader.model, 0.01)
    step(reader, windows, optimizer, torch.arange(5).numpy())
    before = snapshot(reader.model, optimizer)
    with torch.no_grad():
        bias = reader.model.qa_outputs.bias
        kept = bias.clone()
        if fault == "loss":
            bias.fill_(float("nan"))
        else:
            handle = bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFinite, match="^the loss is nan" if fault == "loss" else "^the norm of the gradient is"):
        step(reader, windows, optimizer, torch.arange(5, 9).numpy())
    with torch.no_grad():
        bias.copy_(kept)
    after = snapshot(reader.model, optimizer)
    assert len(before) == len(after) > 100
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    if fault == "gradient":
        handle.remove()
    step(reader, windows, optimizer, torch.arange(5, 9).numpy())  # and it can go on


def test_fp16_overflow_leaves_the_step_out_until_the_scale_is_spent(reader, windows):
    optimizer, scaler = make_optimizer(reader.model, 0.01), make_scaler(CPU, "fp16")
    chosen = torch.arange(5).numpy()
    _, raw = accumulated(reader, windows, chosen, 200)
    norm = math.sqrt(sum((g.double() ** 2).sum() for g in raw.values()))
    result = step(reader, windows, optimizer, chosen, precision="fp16", scaler=scaler, clip=norm / 2)
    assert result.updated and result.grad_norm == pytest.approx(norm, rel=0.01)  # not 65,536 times that
    after = math.sqrt(sum((g.double() ** 2).sum() for g in gradients(reader.model).values()))
    assert after == pytest.approx(norm / 2, rel=1e-3)
    scale = scaler.get_scale()
    handle = reader.model.qa_outputs.bias.register_hook(lambda gradient: gradient * float("inf"))
    before = snapshot(reader.model, optimizer)
    result = step(reader, windows, optimizer, chosen, precision="fp16", scaler=scaler)
    assert not result.updated and not math.isfinite(result.grad_norm) and math.isfinite(result.loss)
    assert scaler.get_scale() == scale / 2
    with pytest.raises(NonFinite, match="the loss scale fell below 1"):
        for _ in range(20):
            step(reader, windows, optimizer, chosen, precision="fp16", scaler=scaler)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(reader.model, optimizer), strict=True))
    handle.remove()


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.01)])
def test_16_bits_stay_near_fp32(reader, windows, precision, tolerance):
    chosen = torch.arange(9).numpy()
    (wanted_loss, _, _), wanted = accumulated(reader, windows, chosen, 200)
    (loss, _, _), found = accumulated(reader, windows, chosen, 200, precision)
    scale = make_scaler(CPU, precision).get_scale()
    assert loss == pytest.approx(wanted_loss, rel=tolerance)
    assert 0 < distance({name: g / scale for name, g in found.items()}, wanted) < 10 * tolerance
    assert all(g.dtype is torch.float32 for g in found.values())


def test_precision_and_device_are_chosen_or_refused():
    assert choose_precision("auto", CPU) in ("fp32", "bf16")
    assert [choose_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert [make_scaler(CPU, name).is_enabled() for name in ("fp32", "bf16", "fp16")] == [False, False, True]
    with pytest.raises(InputError, match="--precision fp8: choose one of auto, fp32"):
        choose_precision("fp8", CPU)
    for name in ("meta", "toaster", "cuda:99", ""):
        with pytest.raises(InputError, match=f"^--device {name}: not usable here"):
            choose_device(name)
