"""A new layer is what its form promises: it takes the factors, is as large as was counted, computes their product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.compress.applying.check import ApplyError
from rankfold.compress.planning.lawful import listed
from rankfold.layers.rounded import numbers_of
from rankfold.sites import Factors, Form, Site, setting_of


def written_(site: Site, form: Form, rank: int, new: nn.Module, factors: Factors) -> None:
    """Fill a new layer; ``ApplyError`` for factors of other shapes than the form takes."""
    expected, given = _expected(site, form, rank), [tuple(part.shape) for part in factors.parts]
    shown = given[:2] if form.over_base else given
    if expected is not None and shown != expected:
        raise ApplyError(
            f"{site.title}: for {form} of rank {rank} the method must give factors right {expected[0]} and left "
            f"{expected[1]}, and gave {listed(given)}: correct the factors of the method"
        )
    outputs = site.shape[0] * site.groups
    if factors.shift is not None and tuple(factors.shift.shape) != (outputs,):  # one number would go to all of them
        raise ApplyError(
            f"{site.title}: the method must give a shift for the {outputs} outputs with the factors, and gave "
            f"shape {tuple(factors.shift.shape)}: make the plan again, or correct the factors of the method"
        )
    try:
        site.layer.write_(new, form, factors)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ApplyError(
            f"{site.title}: form {form} of rank {rank} cannot take factors of shapes {listed(given)}: {reason}"
        ) from error


def _expected(site: Site, form: Form, rank: int) -> list[tuple[int, ...]] | None:
    """Shapes of (right, left) for forms that are one product, whatever stands behind them; None for others."""
    if form.decomposed is Form.FACTORED:
        (m, n), groups = site.shape, () if site.groups == 1 else (site.groups,)
        return [(*groups, rank, n), (*groups, m, rank)]
    return None


def check_counted(new: nn.Module, site: Site, form: Form, rank: int, bias: bool) -> None:
    """``ApplyError`` for a layer that holds another number of parameters than its form counts."""
    held, counted = numbers_of(new), site.layer.params(form, rank, bias)
    if held != counted:
        raise ApplyError(
            f"{site.title}: form {form} counts {counted} parameters at rank {rank}, and the layer that it builds "
            f"has {held}: correct its params or its skeleton"
        )


@torch.no_grad()
def check_alike(old: Any, new: nn.Module, site: Site, form: Form, rank: int, factors: Factors) -> None:
    """``ApplyError`` for a form that stores the factors of another one and computes something else with them."""
    if form.like is None or not form.shares or not form.like.offered(site.layer):
        return
    weight, mode = site.layer.weight(old), new.training
    inputs = _probe(site, old)
    expected = _of_like(old, new, site, form, rank, factors, inputs)
    try:
        with torch.autocast(weight.device.type, enabled=False):
            given = new.eval().forward(inputs).double()  # hooks of the layer's owner may change what it gives
    finally:
        new.train(mode)
    slack = torch.finfo(weight.dtype).eps ** 0.5
    if given.shape != expected.shape:
        what = f"an output of shape {tuple(expected.shape)} was expected, got {tuple(given.shape)}"
    elif not (given - expected).norm() <= slack * expected.norm().clamp_min(1e-12):
        away = float((given - expected).norm() / expected.norm().clamp_min(1e-12))
        what = (
            f"the layer must compute the product of its factors, and its output differs from that by {away:.2g} of "
            "its norm"
        )
    else:
        return
    raise ApplyError(f"{site.title}: form {form} at rank {rank}: {what}: correct its write_ or its module")


def _of_like(old: Any, new: nn.Module, site: Site, form: Form, rank: int, factors: Factors, inputs: Tensor) -> Tensor:
    """What the form whose factors these are computes with them."""
    layer, bias = site.layer, getattr(new, "bias", None)
    if form.like is Form.FACTORED and layer.kind == "Linear":
        right, left = (part.to(inputs).double() for part in factors.parts)
        return F.linear(inputs.double() @ right.mT, left, None if bias is None else bias.double())
    like = form.like or form
    other: Any = layer.skeleton(old, like, rank, bias is not None).eval()
    layer.write_(other, like, factors)
    if bias is not None:
        other.bias.copy_(bias)
    with torch.autocast(inputs.device.type, enabled=False):  # its rounding is none of the form's faults
        return other(inputs).double()


def _probe(site: Site, old: Any) -> Tensor:
    """A small input."""
    weight, conv = site.layer.weight(old), site.layer.convolution
    shape: tuple[int, ...] = (3, site.shape[1])
    if site.layer.lookup:
        return torch.arange(min(16, site.shape[1]), device=weight.device).unsqueeze(0)
    if conv is not None:
        spread = setting_of(old).dilation
        shape = 2, conv.channels_in, *(d * (k - 1) + 3 for d, k in zip(spread, conv.kernel, strict=True))
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).sin().reshape(shape).to(weight)
