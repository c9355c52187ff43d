"""The arithmetic of the forward pass: as the parameters are, or bfloat16 where the machine computes in it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rankfold.train.recipe import Precision


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context for forward passes on `device`; "auto" is bfloat16 if it is native there, else nothing."""
    if precision == "bfloat16" or (precision == "auto" and has_bfloat16(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware, as far as torch tells."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Absent before torch 2.11; there "auto" is float32.
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return False
