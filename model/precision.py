"""Which number formats a run computes in, decided in one table.

device      auto    why
CUDA        bf16    matrix units run it, and its range is that of fp32; fp16 with a scaler on older cards
CPU         bf16    where AVX512-BF16 or AMX multiply it directly; otherwise fp32, as emulation is slower
other       fp32    untested
"""

import torch

from common.choices import PRECISIONS
from common.errors import InputError



def choose_device(name):
    """`auto` is CUDA when there is one, else the CPU; InputError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # `meta` is a device too, but none that computes
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: not usable here ({reason})") from None
    return device


def choose_precision(name, device):
    """Resolve `auto` by the table above; returns fp32, bf16 or fp16."""
    if name not in PRECISIONS:
        raise InputError(f"--precision {name}: choose one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if capable else "fp32"
    return "fp32"


def autocast(device, precision):
    """A context in which matrix products run in `precision`; fp32 leaves everything as it is."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def make_scaler(device, precision):
    """Loss scaling (Micikevicius et al. 2017, arXiv 1710.03740, section 3.2), needed by fp16 alone."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
