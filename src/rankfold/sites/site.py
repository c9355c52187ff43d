"""A site: one named matrix of a model, what can become of it, and what each choice costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from torch import Tensor, nn

from rankfold.forms import Form, Layer


@dataclass(frozen=True)
class Site:
    """One named matrix of a model.

    ``name`` is the module's path, ``aliases`` further paths of the same module object, ``parameter`` the entry of the
    state dict, ``tied_to`` other parameters that share its storage. ``shape`` is (m, n) = (outputs, inputs), for each
    of ``groups``.
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
class SiteList(Sequence[Site]):
    """The sites of a model in the order of its modules, and every parameter that no site covers with the reason."""

    items: tuple[Site, ...]
    left_out: tuple[tuple[str, str], ...] = field(default=())

    @overload
    def __getitem__(self, key: int | str) -> Site: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            for site in self.items:
                if key == site.name or key in site.aliases:
                    return site
            raise KeyError(f"no site named {key!r}; the sites are: {', '.join(s.name for s in self.items) or 'none'}")
        return self.items[key]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def reducible(self) -> tuple[Site, ...]:
        """The sites for which something else than keeping is possible."""
        return tuple(site for site in self.items if site.forms - {Form.KEEP})
