"""Which parameters of a model become products, and why the others do not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from rankfold.forms.geometry import ChannelFolding, Matricization, Plain, Stacked
from rankfold.linalg.brief import brief
from rankfold.sites import Form, Site, hidden, sites, unwrap
from rankfold.sites.wish import Where


@dataclass(frozen=True, eq=False)
class Target:
    """One parameter that can be a product: ``parameter`` of ``module``, read as (m, n) for each of ``groups``.

    ``name`` is the site's, or ``PATH.in_proj`` for the packed q, k, v of an attention module. ``tied`` are the other
    places, (module, parameter), where the very same ``nn.Parameter`` stands.
    """

    name: str
    module: nn.Module
    parameter: str
    geometry: Matricization
    shape: tuple[int, int]
    groups: int
    tied: tuple[tuple[nn.Module, str], ...] = ()

    __repr__ = brief

    @property
    def weight(self) -> nn.Parameter:
        return getattr(self.module, self.parameter)

    @property
    def paper_width(self) -> int:
        """The side of the square factors in the paper's shapes (LoRITa, section 4); one has the weight's size.

        Inputs × inputs behind R_1 in general; outputs × outputs before R_N for convolutions, since the mode-4 unfolding
        there is the transpose of the matrix here.
        """
        return self.shape[0] if isinstance(self.geometry, ChannelFolding) else self.shape[1]

    @property
    def title(self) -> str:
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        kind = type(self.module).__name__.removeprefix("NonDynamicallyQuantizable")
        return f"{self.name} ({kind} {self.shape[0]}×{self.shape[1]}{groups})"


@dataclass(frozen=True)
class Choice:
    """What ``overparametrize_`` would change, in the order of the modules, and what it leaves with the reason."""

    targets: tuple[Target, ...]
    left_out: tuple[tuple[str, str], ...]

    __repr__ = brief


def choose(model: nn.Module, where: Where | None = None) -> Choice:
    """Every parameter of ``model`` that ``overparametrize_(model, where=where)`` would turn into a product.

    ``where`` as in ``rankfold.sites``. Left out, each with its reason: what ``sites`` leaves out (lazy, quantised,
    depthwise, parametrised by something else, a matrix of rank 1, …), embeddings, recurrent layers, experts, frozen
    parameters, products already formed, tied parameters of which not all places are chosen, and packed q, k, v of which
    not all three are.
    """
    root = unwrap(model)
    found = sites(root, where)
    left_out: list[tuple[str, str]] = []
    owners: dict[int, list[tuple[str, nn.Module, str]]] = defaultdict(list)
    for path, module in root.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                owners[id(parameter)].append((f"{path}.{key}".lstrip("."), module, key))
    targets: dict[tuple[int, str], Target] = {}
    packed: dict[str, int] = defaultdict(int)
    for site in found:
        if (reason := _why_not(root, site)) is not None:
            left_out.append((site.parameter, reason))
            continue
        target = _target(root, site)
        packed[target.name] += 1
        targets[id(target.module), target.parameter] = target
    for key, target in list(targets.items()):
        if isinstance(target.geometry, Stacked) and packed[target.name] < target.geometry.count:
            reason = "q, k and v are one packed parameter: choose all three of them, or none"
        elif not target.weight.requires_grad:
            reason = "frozen (requires_grad=False): training would not change it"
        else:
            continue
        left_out.append((owners[id(target.weight)][0][0], reason))
        del targets[key]
    chosen, seen = [], set()
    for target in targets.values():
        places = owners[id(target.weight)]
        same = [targets.get((id(module), key)) for _, module, key in places]
        if any(other is None or other.geometry != target.geometry for other in same):
            names = ", ".join(name for name, module, _ in places if module is not target.module)
            left_out.append(
                (
                    f"{target.name}.{target.parameter}",
                    f"tied to {names}, which cannot be chosen or was not chosen with it",
                )
            )
        elif id(target.weight) not in seen:
            seen.add(id(target.weight))
            tied = tuple((module, key) for _, module, key in places if module is not target.module)
            chosen.append(replace(target, tied=tied))
    return Choice(tuple(chosen), (*left_out, *found.left_out))


def _why_not(root: nn.Module, site: Site) -> str | None:
    around = hidden(root, site.name)
    if around is not None and not isinstance(around, nn.MultiheadAttention):
        return f"read directly by the {type(around).__name__} around it, which needs an ordinary weight"
    if site.layer.lookup:
        return "an embedding, which looks up rows: its whole table would be multiplied out at every step"
    if site.forms == {Form.KEEP} and not site.tied_to:
        return site.note
    return None


def _target(root: nn.Module, site: Site) -> Target:
    """The place of a site in the model as it is, where attention modules are not taken apart."""
    path, _, leaf = site.name.rpartition(".")
    parent: Any = root.get_submodule(path)
    if isinstance(parent, nn.MultiheadAttention) and leaf != "out_proj":
        if parent.in_proj_weight is not None:
            name = f"{path}.in_proj".lstrip(".")
            return Target(name, parent, "in_proj_weight", Stacked(3), site.shape, 3)
        return Target(site.name, parent, f"{leaf}_weight", Plain(), site.shape, 1)
    geometry = site.layer.geometry(Form.FACTORED)
    return Target(site.name, root.get_submodule(site.name), "weight", geometry, site.shape, site.groups)
