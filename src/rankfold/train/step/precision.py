"""The arithmetic of the forward pass: as the parameters are, or in half precision where the machine computes in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from rankfold.sites import without_fused_attention
from rankfold.train.errors import TrainingError

Arithmetic = Literal["float32", "bfloat16", "float16", "auto"]


@contextmanager
def arithmetic(precision: Arithmetic, device: torch.device) -> Iterator[None]:
    """A context for forward passes on `device`; "auto" is bfloat16 if it is native there, else nothing.

    Under autocast torch's fused kernels for attention in eval mode are off: given a padding mask they mix float32
    with bfloat16, which is an error. The setting is left as found. "float16" is for CUDA, and not for training, whose
    small gradients it loses: TrainingError elsewhere.
    """
    if precision == "float16" and device.type != "cuda":
        raise TrainingError(f"float16 is computed only on cuda, not on {device.type}: use bfloat16 or float32")
    if precision == "float32" or (precision == "auto" and not has_bfloat16(device)):
        yield
        return
    half = torch.float16 if precision == "float16" else torch.bfloat16
    with without_fused_attention(), torch.autocast(device.type, half, cache_enabled=False):  # weights may change inside
        yield


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware, as far as torch tells."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Absent before torch 2.11; there "auto" is float32.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return False
