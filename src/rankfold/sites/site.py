"""A site: one named matrix of a model, what can become of it, and what each choice costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor, nn

from rankfold.forms import Form, Layer
from rankfold.linalg.brief import brief


@dataclass(frozen=True)
class Site:
    """One named matrix of a model, m × n = outputs × inputs.

    Attributes:
        name: the module's path.
        parameter: the entry of the state dict.
        layer: how the parameter is read as a matrix; ``shape`` is its (m, n), for each of ``groups``.
        forms: what the matrix can become.
        tied_to: other parameters that share its storage.
        aliases: further paths of the same module object.
        note: what is particular about it, in words.

    Example:
        >>> site = rf.sites(nn.Sequential(nn.Conv2d(3, 8, 3)))["0"]
        >>> site.kind, site.shape, site.max_rank(rf.Form.FACTORED)
        ('Conv2d', (8, 27), 8)
    """

    name: str
    parameter: str
    layer: Layer
    forms: frozenset[Form]
    tied_to: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def kind(self) -> str:
        return self.layer.kind

    @property
    def shape(self) -> tuple[int, int]:
        return self.layer.shape

    @property
    def groups(self) -> int:
        return self.layer.groups

    @property
    def title(self) -> str:
        """``name (kind m×n)``, for messages."""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.name} ({self.kind} {self.shape[0]}×{self.shape[1]}{groups})"

    def max_rank(self, form: Form) -> int:
        return self.layer.max_rank(form)

    def takes(self, form: Form) -> bool:
        """Whether ``form`` is possible here, those included that are only taken where they are asked for."""
        return form in self.forms or (form.optional and self.forms != {Form.KEEP} and form.offered(self.layer))

    def weight(self, model: nn.Module) -> Tensor:
        """The parameter of this site in ``model`` (attention already split), detached."""
        return self.layer.weight(model.get_submodule(self.name)).detach()

    def bias(self, model: nn.Module) -> Tensor | None:
        bias = getattr(model.get_submodule(self.name), "bias", None)
        return None if bias is None else bias.detach()

    def matrix(self, model: nn.Module, form: Form = Form.FACTORED) -> Tensor:
        """The matrix (m, n), or (groups, m, n), that ``form`` would factor."""
        return self.layer.geometry(form).matrix(self.weight(model))


@dataclass(frozen=True)
class Joint(Site):
    """The sites of a group that reads one tensor as one matrix, theirs below one another. ``members``: these sites, the
    first of which will hold what they share."""

    members: tuple[Site, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def weight(self, model: nn.Module) -> Tensor:
        return torch.cat([member.matrix(model) for member in self.members])

    def bias(self, model: nn.Module) -> Tensor | None:
        found = [bias for bias in (member.bias(model) for member in self.members) if bias is not None]
        return torch.cat(found) if found else None


SHOWN = 20  # names in a message


@dataclass(frozen=True)
class SiteList(Sequence[Site]):
    """The sites of a model in the order of its modules, by index or by name.

    Attributes:
        items: the sites.
        left_out: (parameter, reason) of every parameter that no site covers.
        joint: groups of sites that may share a factor; found by name, and not counted among the sites.

    Example:
        >>> found = rf.sites(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        >>> len(found), found["0"].shape, found.left_out[0]
        (1, (8, 8), ('1.weight', 'a vector: nothing to factor'))
    """

    items: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...] = field(default=())
    joint: tuple[Joint, ...] = field(default=(), repr=False)

    __repr__ = brief

    @overload
    def __getitem__(self, key: int | str) -> Site: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            for site in (*self.items, *self.joint):
                if key == site.name or key in site.aliases:
                    return site
            why = next((why for name, why in self.left_out if name == key or name.rpartition(".")[0] == key), None)
            if why is not None:
                raise KeyError(f"{key!r} is no site: {why}")
            names = [site.name for site in self.items]
            shown = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
            raise KeyError(f"there is no site named {key!r}: the sites are {shown or 'none'}")
        return self.items[key]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def reducible(self) -> tuple[Site, ...]:
        """The sites for which something else than keeping is possible."""
        return tuple(site for site in self.items if site.forms - {Form.KEEP})


def why_left(left_out: Sequence[tuple[str, str]]) -> str:
    """At most three reasons why parameters are no sites, each once, with the first parameter of which it is true."""
    names: dict[str, list[str]] = {}
    for name, why in left_out:
        names.setdefault(why, []).append(name)
    return "; ".join(f"{of[0]}{', …' if len(of) > 1 else ''}: {why}" for why, of in list(names.items())[:3])
