"""The gpu tier: the same model and step on CUDA."""

import numpy as np
import pytest
import torch

from data.examples import Answer, Example
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from model.lora import LoraConfig, add_lora
from model.precision import choose_precision, make_scaler
from model.quant import FourBit, dense_weight
from model.tune import tune_lora
from model.weights import load_model
from answering.reader import Reader
from tests.test_lora import randomise
from tests.tiny_model import sample_texts
from training.optimizer import make_optimizer
from training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu tier: no CUDA device here"),
]


def steps(model, folder, precision, count=30):
    """The losses of steps on one small batch."""
    device = torch.device("cuda")
    windows = WindowSet(some_examples(), load_tokenizer(folder), WindowSettings(64, overlap=16), with_labels=True)
    optimizer, scaler = make_optimizer(model, 0.01), make_scaler(device, precision)
    return [
        train_step(
            model, optimizer, scaler, windows, np.arange(len(windows)), learning_rate=1e-3, max_tokens=256, clip=1.0,
            device=device, precision=precision,
        ).loss
        for _ in range(count)
    ]


def some_examples(count=9):
    texts = [text.split("\n")[0] for text in sample_texts()][:count]
    return [Example(str(k), f"Question {k}?", text, (Answer(text[:5], 0),), "") for k, text in enumerate(texts)]


def test_answers_are_those_of_the_cpu(tiny_folder):
    examples = some_examples()
    cpu, gpu = (
        list(Reader.load(tiny_folder, device=device, precision="fp32").predict(examples)) for device in ("cpu", "cuda")
    )
    assert len(cpu) == len(gpu) == 9
    for one, other in zip(cpu, gpu, strict=True):
        assert one.spans[0].text == other.spans[0].text
        assert one.spans[0].score == pytest.approx(other.spans[0].score, abs=1e-3)  # TF32 is off; sums differ in order


@pytest.mark.parametrize("precision", ["auto", "fp32", "fp16"])
def test_steps_learn(tiny_folder, precision):
    device = torch.device("cuda")
    model, _ = load_model(tiny_folder)
    losses = steps(model.to(device).train(), tiny_folder, choose_precision(precision, device))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lora_over_4_bits_learns(tiny_folder, precision):
    pytest.importorskip("bitsandbytes", reason="gpu tier: no bitsandbytes on this machine")
    model, _ = load_model(tiny_folder, four_bit=FourBit.named("nf4", precision))
    tune_lora(model, LoraConfig(4, 8.0, targets=("all-linear",)))
    model.bert.encoder.gradient_checkpointing = True
    frozen = dense_weight(model.bert.encoder.layer[0].intermediate.dense.base)
    losses = steps(model.to("cuda").train(), tiny_folder, precision)
    assert losses[-1] < 0.7 * losses[0]
    packed = dense_weight(model.bert.encoder.layer[0].intermediate.dense.base).cpu()
    assert (packed - frozen).abs().max() < 1e-3  # the same weight, read back by another kernel


def test_adapters_answer_as_on_the_cpu(tiny_folder, tmp_path):
    examples = some_examples()
    cpu = Reader.load(tiny_folder, device="cpu", precision="fp32")
    cpu.base = str(tiny_folder), None
    add_lora(cpu.model, LoraConfig(3, 7.0, dora=True), "one")
    randomise(cpu.model, "one")
    cpu.all_settings["one"] = cpu.all_settings[None]
    cpu.save(tmp_path)
    gpu = Reader.load(tmp_path, device="cuda", precision="fp32")
    for one, other in zip(cpu.predict(examples), gpu.predict(examples), strict=True):
        assert one.spans[0].text == other.spans[0].text
