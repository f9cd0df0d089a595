"""All that the page shows of one answer, as one JSON value; also what the server's /api/explain returns."""

import base64
import time
import zlib
from dataclasses import dataclass

import numpy as np
import torch

from answering.reader import run_steps
from inside.attention import attention_maps
from inside.hooks import blocks, embeddings, hooked
from inside.lens import Lens, lens
from inside.saliency import STEPS, Saliency, saliency_steps
from inside.why import Why, why

REPEATS = 3
BEST = 8  # spans of the n-best list


@dataclass(frozen=True, slots=True)
class Looked:
    """What the model was asked for an explanation. maps: (H, T, T) per layer. parts: as `part_costs` gives them."""

    why: Why
    lens: Lens
    saliency: Saliency
    maps: list[torch.Tensor]
    parts: list[dict]


def explain(case, *, steps=STEPS):
    """The explanation of a Case (see `described`). InputError where saliency cannot be had or no window could be scored."""
    return described(case, run_steps(looking(case, steps=steps)))


def looking(case, *, steps=STEPS):
    """All that `explain` needs the model for, as a generator; what it returns is a Looked.

    Each step is about as much as a pass or two, and leaves no hook behind: in between, others may use the model.
    """
    yield from case.scoring()
    seen, looked = why(case), lens(case)
    yield
    grads = yield from saliency_steps(case, steps)
    maps = attention_maps(case, seen.winner)
    yield
    return Looked(seen, looked, grads, maps, part_costs(case, seen.winner))


def described(case, looked):
    """The explanation as one JSON value.

    Tokens, lens, saliency and attention are of the window that won. Attention is base64 of zlib-compressed bytes, one
    per number, layer by layer, head by head, row by row: round(255 p).
    """
    seen, depth, grads, maps = looked.why, looked.lens, looked.saliency, looked.maps
    packed = b"".join((255 * one).round().to(torch.uint8).numpy().tobytes() for one in maps)
    answer = seen.answer
    return {
        "question": case.example.question,
        "context": case.example.context,
        "answer": None if answer is None else {"text": answer.text, "start": answer.start, "end": answer.end},
        "best": span_value(seen.prediction.spans[0]),
        "n_best": [span_value(span) for span in seen.prediction.spans[:BEST]],
        "null": {"score": sum(seen.prediction.null), "probability": seen.prediction.null_probability,
                 "threshold": seen.threshold, "odds": seen.prediction.null_odds},
        "windows": [
            {"number": view.number, "first": view.first, "last": view.last, "start": view.start, "end": view.end,
             "null": sum(view.null), "best": view.spans[0].score if view.spans else None,
             "text": view.spans[0].text if view.spans else ""}
            for view in seen.windows
        ],
        "winner": seen.winner,
        "length_penalty": case.settings.decode.length_penalty,
        "tokens": [
            {"token": piece.token, "part": piece.part, "start": piece.start, "end": piece.end}
            for piece in case.pieces(seen.winner)
        ],
        "lens": {
            "appears": depth.appears, "beaten": depth.beaten and depth.beaten.text,
            "layers": [
                {"start": rounded(one.start_logits), "end": rounded(one.end_logits), "best": one.best.text,
                 "score": one.score, "rank": one.rank, "null": one.null}
                for one in depth.layers
            ],
        },
        "saliency": {"attributions": rounded(grads.attributions), "score": grads.score, "baseline": grads.baseline,
                     "missing": grads.missing, "steps": grads.steps},
        "attention": {"heads": [len(one) for one in maps], "size": maps[0].shape[-1],
                      "data": base64.b64encode(zlib.compress(packed, 9)).decode()},
        "parts": looked.parts,
    }


def span_value(span):
    return {"text": span.text, "start": span.start, "end": span.end, "start_logit": span.start_logit,
            "end_logit": span.end_logit, "score": span.score, "probability": span.probability}


def rounded(tensor):
    """A (T,) tensor as a list of numbers with 4 digits after the point."""
    return np.round(tensor.double().numpy(), 4).tolist()


def part_costs(case, number):
    """[{name, parameters, seconds}] of embeddings, each block and the head: the least time of REPEATS passes each."""
    parts = {"embeddings": embeddings(case.model)}
    parts |= {f"block {layer}": block for layer, block in enumerate(blocks(case.model))}
    parts["head"] = case.model.qa_outputs
    began, seconds = {}, {name: [] for name in parts}

    def synchronised():
        if case.reader.device.type == "cuda":
            torch.cuda.synchronize(case.reader.device)
        return time.perf_counter()

    def enter(name):
        return lambda *_: began.__setitem__(name, synchronised())

    def leave(name):
        return lambda *_: seconds[name].append(synchronised() - began[name]) and None

    handles = []
    for name, module in parts.items():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name)))
    inputs = case.inputs(number)
    with hooked(*handles), case.computing() as model:
        for _ in range(REPEATS):
            model(*inputs)
    # with virtual tokens the embeddings' forward is not called as a whole, and no time of its own can be told
    return [
        {"name": name, "parameters": sum(p.numel() for p in module.parameters()),
         "seconds": min(seconds[name]) if seconds[name] else None}
        for name, module in parts.items()
    ]
