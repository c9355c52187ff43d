"""The arithmetic of the forward pass: as the parameters are, or bfloat16 where the machine computes in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rankfold.sites import without_fused_attention
from rankfold.train.recipe import Precision


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """A context for forward passes on `device`; "auto" is bfloat16 if it is native there, else nothing.

    Under autocast torch's fused kernels for attention in eval mode are off: given a padding mask they mix float32
    with bfloat16, which is an error. The setting is left as found.
    """
    if precision != "bfloat16" and not (precision == "auto" and has_bfloat16(device)):
        yield
        return
    with without_fused_attention(), torch.autocast(device.type, torch.bfloat16):
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
