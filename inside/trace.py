"""One window through every operation of the model: name, shape, numbers, equation, and the line that computes it.

A torch function mode sees each call that the model's own code makes, so the list is what ran, not what somebody wrote
down; the line is the one in model/ that was being executed. Attention is the eager one, step by step.
"""

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from inside.hooks import hooked

MODEL_CODE = str(Path(__file__).parents[1] / "model")
ROOT = Path(__file__).parents[1]
# Operation, as torch names it -> its equation. What only looks at a tensor (its shape, its device) is not in here.
EQUATIONS = {
    "embedding": "y[t] = E[id[t]]",
    "linear": "y = x Wᵀ + b",
    "layer_norm": "y = γ (x − mean x) / √(var x + ε) + β",
    "gelu": "y = x Φ(x)",
    "relu": "y = max(0, x)",
    "silu": "y = x / (1 + exp(−x))",
    "softmax": "y[t] = exp(x[t]) / Σ exp(x)",
    "matmul": "y[i, j] = Σ a[i, k] b[k, j]",
    "__matmul__": "y[i, j] = Σ a[i, k] b[k, j]",
    "add": "y = a + b",
    "__add__": "y = a + b",
    "__radd__": "y = a + b",
    "sub": "y = a − b",
    "__sub__": "y = a − b",
    "mul": "y = a · b",
    "__mul__": "y = a · b",
    "__rmul__": "y = a · b",
    "div": "y = a / b",
    "__truediv__": "y = a / b",
    "dropout": "y = x (no dropping while answering)",
    "masked_fill": "y = −∞ where the mask says so, else x",
    "view": "the same numbers in another shape",
    "reshape": "the same numbers in another shape",
    "flatten": "the same numbers in another shape",
    "transpose": "two axes swapped",
    "expand": "the same numbers, repeated",
    "unbind": "taken apart along the last axis",
    "cat": "put one behind the other",
    "__getitem__": "a part of x",
    "float": "y = x, in fp32",
    "to": "y = x, in another number format",
    "arange": "0, 1, 2, …",
    "abs": "y = |x|",
    "amax": "y = max x",
    "clamp": "y = max(x, least)",
    "round": "y = the nearest whole number",
    "_int_mm": "y[i, j] = Σ a[i, k] b[k, j], in int32",
    "dequantize_4bit": "y = code[index] · absmax",
    "matmul_4bit": "y = x Wᵀ, W from 4 bits",
    "index_add": "y = x, with rows added",
    "cumsum": "y[t] = Σ x up to t",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operation. module: whose forward it is in, by name. lowest, mean, highest: of the result, in fp64.

    file, line, code: the line of the model's source that was executed. equation: "" for an operation not in EQUATIONS.
    """

    module: str
    operation: str
    shape: tuple[int, ...]
    dtype: str
    lowest: float
    mean: float
    highest: float
    equation: str
    file: str
    line: int
    code: str


def trace(case, number=None):
    """The Steps of one window, by default the one that won, in the order they ran."""
    number = case.best.window if number is None else number
    ids, types = case.inputs(number)
    recorder = Recorder()
    with case.computing() as model, recorder.following(model), recorder:
        model.attention_maps(ids, types)
    return recorder.steps


class Recorder(TorchFunctionMode):
    """A mode that keeps a Step of every torch call made by code under model/; calls inside such calls do not count."""

    def __init__(self):
        super().__init__()
        self.steps, self.modules = [], []

    def following(self, model):
        """A context in which it is known whose forward is running."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: self.modules.append(n)))
            handles.append(module.register_forward_hook(lambda *_: self.modules.pop() and None))
        return hooked(*handles)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(MODEL_CODE):
            frame = frame.f_back
        name = getattr(function, "__name__", None) or resolve_name(function) or "?"
        if frame is None or name == "__get__":  # .shape, .device and their like look, and compute nothing
            return result
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for output in outputs:
            if isinstance(output, torch.Tensor) and output.numel():
                self.keep(name, output, frame)
        return result

    def keep(self, name, output, frame):
        with torch._C.DisableTorchFunction():
            numbers = output.detach().double()
            lowest, mean, highest = numbers.min().item(), numbers.mean().item(), numbers.max().item()
        path, line = frame.f_code.co_filename, frame.f_lineno
        self.steps.append(Step(
            self.modules[-1] if self.modules else "", name, tuple(output.shape),
            str(output.dtype).removeprefix("torch."), lowest, mean, highest, EQUATIONS.get(name, ""),
            str(Path(path).relative_to(ROOT)), line, linecache.getline(path, line).strip(),
        ))
