"""Objects of one's own are held to their laws where they are used: one line says what was expected and what was given.

``rankfold.testing`` checks the same and more, for whoever writes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.compress.methods.method import Decomposition, Method
from rankfold.compress.ranks.budget import Resource
from rankfold.compress.ranks.options import Costs, Option
from rankfold.costs import Cost
from rankfold.layers.rounded import numbers_of
from rankfold.sites import Factors, Form, Site, SiteList, setting_of

if TYPE_CHECKING:
    from rankfold.compress.planning.plan import Plan

_SLACK = 1e-9  # of a limit: sums of floats
_FLOORED = 0.01  # of a budget: FLOPs are rounded for each layer


class ApplyError(ValueError):
    """A plan cannot be carried out on this model; names the site, what was asked and the remedy.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> plan = rf.plan(net, rf.Ranks({"0": 2}), "truncate", example=torch.randn(1, 8))
        >>> entry = rf.Entry("nowhere", rf.Form.FACTORED, 2, (8, 8))
        >>> try:
        ...     rf.apply_(net, plan.with_entries((entry,)))
        ... except rf.ApplyError as error:
        ...     print("nowhere" in str(error))
        True
    """


class LawError(ValueError):
    """A method, rule or budget of one's own breaks one of its laws."""


def check_decomposition(method: Method, site: Site, form: Form, made: Decomposition) -> None:
    """``LawError`` for errors, levels or ranks that do not fit one another."""

    def need(holds: bool, what: str) -> None:
        if not holds:
            raise LawError(f"{site.title}: the decomposition of method {method.name!r} for {form}: {what}")

    errors, levels, ranks = made.errors, made.levels, list(made.ranks)
    numbers = isinstance(errors, Tensor) and errors.dtype == torch.float64 and errors.dim() == 1 and len(errors) > 0
    need(numbers, f"errors (k + 1,) in float64 were expected, got {_said(errors)}")
    need(bool((errors >= 0).all()), "errors of at least 0 were expected, and one is negative or NaN")
    k = len(errors) - 1
    fits = isinstance(levels, Tensor) and tuple(levels.shape) == (k,)
    need(fits, f"levels ({k},) were expected beside {k + 1} errors, got {_said(levels)}")
    inside = all(isinstance(rank, int) and form.least <= rank <= k for rank in ranks) and ranks == sorted(set(ranks))
    need(inside, f"ascending ranks from {form.least} to {k} were expected, got {_listed(ranks)}")


def check_members(plan: Plan, here: SiteList) -> None:
    """``ApplyError`` for layers that share a factor, whose entries do not agree about it."""
    entries = {entry.site: entry for entry in plan.entries}
    for entry in plan.entries:
        if not entry.members:
            if (
                entry.form is Form.SHARED
                and entry.site in {s.name for s in here}
                and not here[entry.site].layer.experts
            ):
                raise ApplyError(
                    f"{entry.site}: only groups of layers take the form shared: name the members of the group in the "
                    "plan's entry"
                )
            continue
        group = [entries.get(name) for name in entry.members]
        agreed = all(
            e is not None and (e.form, e.rank, e.members) == (Form.SHARED, entry.rank, entry.members) for e in group
        )
        rows = sum(e.rows for e in group if e is not None)
        if not agreed or entry.site not in entry.members or rows != entry.rank:
            raise ApplyError(
                f"{entry.site}: it shares a factor with "
                f"{', '.join(n for n in entry.members if n != entry.site)}, and their entries in the plan do "
                "not agree: all need the form shared, the same members and rank, and rows that add up to the "
                "rank. Make the plan again, with a smaller budget, or with rf.Ranks for layers of their own"
            )


def written_(site: Site, form: Form, rank: int, new: nn.Module, factors: Factors) -> None:
    """Fill a new layer; ``ApplyError`` for factors of other shapes than the form takes."""
    expected, given = _expected(site, form, rank), [tuple(part.shape) for part in factors.parts]
    shown = given[:2] if form.over_base else given
    if expected is not None and shown != expected:
        raise ApplyError(
            f"{site.title}: for {form} of rank {rank} the method must give factors right {expected[0]} and left "
            f"{expected[1]}, and gave {_listed(given)}: correct the factors of the method"
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
            f"{site.title}: form {form} of rank {rank} cannot take factors of shapes {_listed(given)}: {reason}"
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
            given = new.eval()(inputs).double()
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


def check_picked(
    rule: str, picked: Any, choices: Mapping[str, Sequence[Option]], limits: Costs, names: Sequence[str]
) -> dict[str, Option]:
    """What a rule chose; ``LawError`` for other sites or options than were offered, or for more than the budget."""
    if not isinstance(picked, Mapping) or picked.keys() != choices.keys():
        given = _listed(sorted(map(str, picked))) if isinstance(picked, Mapping) else type(picked).__name__
        raise LawError(
            f"rule {rule!r}: its choose must return one option for each of the {len(choices)} layers, and returned "
            f"{given}"
        )
    for site, option in picked.items():
        if option not in choices[site]:
            raise LawError(
                f"rule {rule!r}: its choose must return one of the {len(choices[site])} options offered for {site}"
            )
    for axis, limit in enumerate(limits):
        spent = sum(option.costs[axis] for option in picked.values())
        if spent > limit + _SLACK * max(abs(limit), 1.0):
            raise LawError(
                f"rule {rule!r}: {names[axis]} leaves {limit:.6g} for the layers, and what it chose costs {spent:.6g}"
            )
    return dict(picked)


def check_summed(asked: Sequence[Resource], before: Cost, after: Cost) -> None:
    """``LawError`` for a budget that is no sum over the layers: then a plan within its limits is beyond it."""
    for budget in asked:
        whole, now = budget.of(before), budget.of(after)
        if not now <= (budget.keep + _FLOORED) * whole:
            raise LawError(
                f"budget {budget.describe()}: the plan takes {now:.6g} of {whole:.6g}, although its layers are "
                f"within the budget: {type(budget).__name__}.of must be a sum over layers, as parameters are"
            )


def _said(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:6])) + (", …" if len(values) > 6 else "") if values else "none"
