"""The gpu tier: the same model and step on CUDA."""

import numpy as np
import pytest
import torch

from data.examples import Answer, Example
from data.tokenizer import load_tokenizer
from data.windows import WindowSet, WindowSettings
from model.precision import choose_precision, make_scaler
from model.weights import load_model
from reader import Reader
from tests.tiny_model import sample_texts
from training.optimizer import make_optimizer
from training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="gpu tier: no CUDA device here"),
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
    model.to(device).train()
    tokenizer = load_tokenizer(tiny_folder)
    windows = WindowSet(some_examples(), tokenizer, WindowSettings(64, overlap=16), with_labels=True)
    precision = choose_precision(precision, device)
    optimizer, scaler = make_optimizer(model, 0.01), make_scaler(device, precision)
    losses = [
        train_step(
            model, optimizer, scaler, windows, np.arange(len(windows)), learning_rate=1e-3, max_tokens=256, clip=1.0,
            device=device, precision=precision,
        ).loss
        for _ in range(30)
    ]
    assert losses[-1] < 0.7 * losses[0]
