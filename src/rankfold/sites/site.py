"""A site: one named matrix of a model, what can become of it, and what each choice costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, overload

from torch import Tensor, nn

from rankfold.sites.geometry import Matricization


class Form(StrEnum):
    """What a site can become. Parameter and FLOP counts follow from the form, not from the rank alone."""

    KEEP = "keep"
    DENSE = "dense"  # truncated and multiplied out again: saves nothing, works anywhere
    FACTORED = "factored"  # n → r → m; for a convolution k×k to r channels, then 1×1
    SPATIAL = "spatial"  # k_h×1 to r channels, then 1×k_w
    TUCKER = "tucker"  # 1×1, core, 1×1
    CP = "cp"  # 1×1, one depthwise convolution for each axis, 1×1


@dataclass(frozen=True)
class Factors:
    """What a method returns for one site at one rank.

    ``parts`` in the order in which the data meets them, each shaped as the new layer stores it up to reshaping:
    FACTORED and SPATIAL ``(right (r, n), left (m, r))``, with a leading group axis for grouped convolutions;
    TUCKER ``(down (r_in, C_in), core (r_out, r_in, *k), up (C_out, r_out))``;
    CP ``(down (r, C_in), line (r, k) for each axis, up (C_out, r))``; DENSE ``(matrix,)``.
    ``shift`` (m_total,) is added to the layer's output, to be carried by its bias.
    """

    parts: tuple[Tensor, ...]
    shift: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """The shapes of one call of a layer, batch included."""

    input: tuple[int, ...]
    output: tuple[int, ...]


Side = Literal["input", "output"]


class Layer(Protocol):
    """How one type of layer is read, counted and rebuilt. The only objects that know a layer's type."""

    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def groups(self) -> int: ...
    @property
    def has_bias(self) -> bool: ...
    @property
    def forms(self) -> frozenset[Form]: ...
    @property
    def side(self) -> Side:
        """Where second moments are taken: where the matrix is smaller, or at the inputs if a form needs them."""
        ...

    def geometry(self, form: Form) -> Matricization: ...
    def max_rank(self, form: Form) -> int: ...
    def rows(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """The data at ``side`` as rows (N, d), or (groups, N, d); of a convolution's input patches a sample."""
        ...

    def paired_rows(self, module: nn.Module, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        """Rows of the input (N, n) and of every output (N, m), or with a leading group axis, that belong together.

        Of a convolution a sample. None for a layer whose output at one place is no product with one row (transposed
        convolutions).
        """
        ...

    def output_rows(self, output: Tensor) -> Tensor:
        """A layer's output as rows (N, m), or (groups, N, m)."""
        ...

    def params(self, form: Form, rank: int, bias: bool) -> int: ...
    def flops(self, form: Form, rank: int, calls: Sequence[Call]) -> int:
        """Two for each multiply-add, as ``torch.utils.flop_counter`` counts; biases are free."""
        ...

    def skeleton(self, like: Any, form: Form, rank: int, bias: bool) -> nn.Module:
        """The new layer with parameters of the right shape, dtype and device, not yet filled."""
        ...

    def write_(self, layer: Any, form: Form, factors: Factors) -> None: ...


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

    def weight(self, model: nn.Module) -> Tensor:
        """The parameter of this site in ``model`` (attention already split), detached."""
        layer: Any = model.get_submodule(self.name)
        return layer.weight.detach()

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
