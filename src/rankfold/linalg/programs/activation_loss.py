"""How far φ(u) is from φ(t), entry by entry, and the direction in which it shrinks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.linalg.programs.entrywise import Tobit

Activation = Literal["identity", "relu", "leaky_relu", "gelu", "silu"]

# pre-activations u of the fit → (losses, steps): entrywise (φ(t) − φ(u))², or what stands for it, and −½ of its slope
Loss = Callable[[Tensor], tuple[Tensor, Tensor]]


def check_activation(name: str) -> None:
    """`ValueError` for an activation whose fit is not known."""
    if name not in get_args(Activation):
        raise ValueError(f"there is no activation {name!r}: the activations are {', '.join(get_args(Activation))}")


def activate(u: Tensor, name: str, slope: float = 0.01) -> tuple[Tensor, Tensor]:
    """φ(u) and φ′(u), entrywise. At a kink, the slope on the left. `slope`: of leaky ReLU below zero."""
    if name == "identity":
        return u, torch.ones_like(u)
    if name == "relu":
        return u.clamp_min(0), (u > 0).to(u.dtype)
    if name == "leaky_relu":
        return F.leaky_relu(u, slope), torch.where(u > 0, 1.0, slope).to(u.dtype)
    if name == "gelu":
        below = torch.special.ndtr(u)
        return u * below, below + u * torch.exp(-u.square() / 2) * 0.3989422804014327
    if name == "silu":
        gate = torch.sigmoid(u)
        return u * gate, gate * (1 + u * (1 - gate))
    raise ValueError(f"there is no activation {name!r}")


def activation_loss(target: Tensor, name: str, slope: float = 0.01) -> Loss:
    """(φ(t) − φ(u))² itself. The step is (φ(t) − φ(u)) φ′(u)."""
    wanted = activate(target, name, slope)[0]

    def loss(u: Tensor) -> tuple[Tensor, Tensor]:
        value, derivative = activate(u, name, slope)
        missing = wanted - value
        return missing.square(), missing * derivative

    return loss


def surrogate_loss(target: Tensor, sigma: float) -> Loss:
    """For ReLU, the convex loss above it: (t − u)² where t > 0, else −2σ² log Φ(−u/σ), for σ = 0 max(u, 0)²."""
    tobit = Tobit(target, sigma)

    def loss(u: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * tobit.values(u), -tobit.slopes(u)

    return loss
