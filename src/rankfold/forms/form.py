"""What a form is: a way in which a matrix is stored in a network. One file each; it registers itself.

A form is its own name: it compares, sorts and is written to JSON as that text. A form of one's own is a subclass:

    class Mine(Form):
        like = Form.FACTORED             # whose factors it stores: methods need not know it
        def offered(self, layer): ...
        def params(self, layer, rank, bias): ...
        def flops(self, layer, rank, calls): ...
        def skeleton(self, layer, old, rank, bias): ...
        def write_(self, layer, new, factors): ...

    register(Mine("mine"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor, nn

from rankfold.forms.geometry import Matricization
from rankfold.linalg.brief import brief

if TYPE_CHECKING:
    from rankfold.forms.layer import Layer

F = TypeVar("F", bound="Form")


@dataclass(frozen=True)
class Factors:
    """What a method returns for one site at one rank.

    ``parts`` in the order in which the data meets them, each shaped as the new layer stores it up to reshaping:
    FACTORED and SPATIAL ``(right (r, n), left (m, r))``, with a leading group axis for grouped convolutions;
    TUCKER ``(down (r_in, C_in), core (r_out, r_in, *k), up (C_out, r_out))``;
    CP ``(down (r, C_in), line (r, k) for each axis, up (C_out, r))``; DENSE ``(matrix,)``; a form over a base
    ``(right, left, *base)``, what its ``base`` gave behind the factors.
    ``shift`` (m_total,) is added to the layer's output, to be carried by its bias.
    """

    parts: tuple[Tensor, ...]
    shift: Tensor | None = None

    __repr__ = brief


@dataclass(frozen=True)
class Call:
    """The shapes of one call of a layer, batch included."""

    input: tuple[int, ...]
    output: tuple[int, ...]


class _Forms(type):
    """Makes ``for form in Form`` go over all registered forms."""

    def __iter__(cls) -> Iterator[Form]:
        return iter(tuple(_REGISTERED.values()))


class Form(str, metaclass=_Forms):
    """How a matrix is stored in a network: ``rf.Form.FACTORED``, ``KEEP``, ``PIVOTED``, ``SPATIAL`` and others.

    ``Form("factored")`` is the one that is registered under the name. A form of one's own is a subclass, made known by
    ``rankfold.forms.register``; ``like`` is then the form whose factors it stores (itself by default), ``parameter``
    the key of a parameter or buffer that only a layer in this form has. ``exact``: the layer computes with the very
    factors that it is given; others round them. ``optional``: taken only where it is asked for by name (``forms=``).
    ``least``: the smallest rank. ``over_base``: the factors are of what another matrix leaves, which ``base`` makes and
    the layer stores beside them.

    Args:
        name: of a registered form, or of a new one in a subclass.

    Raises:
        ValueError: no form of this name is registered.

    Example:
        >>> rf.Form("factored") is rf.Form.FACTORED, str(rf.Form.FACTORED)
        (True, 'factored')
    """

    KEEP: ClassVar[Form]
    DENSE: ClassVar[Form]
    FACTORED: ClassVar[Form]
    PIVOTED: ClassVar[Form]
    SPATIAL: ClassVar[Form]
    TUCKER: ClassVar[Form]
    CP: ClassVar[Form]
    SHARED: ClassVar[Form]
    INT8: ClassVar[Form]
    RESIDUAL: ClassVar[Form]

    like: Form | None = None
    parameter: str = "up.weight"
    exact: bool = True
    optional: bool = False
    least: int = 1
    over_base: bool = False

    def __new__(cls, name: str) -> Any:
        if cls is Form:
            return form_named(name)
        return super().__new__(cls, name)

    @property
    def value(self) -> str:
        return str(self)

    @property
    def decomposed(self) -> Form:
        """The form that methods know: whose factors are stored here."""
        return self if self.like is None else self.like

    @property
    def shares(self) -> bool:
        """Whether a decomposition for ``like`` says what this form loses, too."""
        return self.exact and not self.over_base

    def offered(self, layer: Layer) -> bool:
        """Whether a layer can take this form."""
        raise NotImplementedError(f"form {self}: offered(layer) is missing")

    def max_rank(self, layer: Layer) -> int:
        return min(layer.shape)

    def ranks_of(self, layer: Layer, rank: int) -> tuple[int, ...]:
        """The sizes between the parts of the new layer at ``rank``: the rank itself, of Tucker's form two."""
        return (rank,)

    def geometry(self, layer: Layer) -> Matricization:
        """How the layer's parameter is read as the matrix that is factored."""
        return layer.matricization

    def params(self, layer: Layer, rank: int, bias: bool) -> int:
        raise NotImplementedError(f"form {self}: params(layer, rank, bias) is missing")

    def buffers(self, layer: Layer, rank: int) -> int:
        """Bytes of what the new layer stores beside its parameters, such as an order of its outputs."""
        return 0

    def bytes(self, layer: Layer, rank: int, bias: bool, element_size: int) -> int:
        """Of everything that the new layer stores; ``element_size`` of the weight that it replaces."""
        return self.params(layer, rank, bias) * element_size + self.buffers(layer, rank)

    def base(self, matrix: Tensor, dtype: Any, weights: Tensor | None = None) -> tuple[Tensor, ...]:
        """For a form over a base: the tensors of the base of ``matrix`` (m, n), stored in ``dtype`` where they are no
        whole numbers. ``weights`` (n,): how much an error counts in each column."""
        raise NotImplementedError(f"form {self}: base(matrix, dtype, weights) is missing")

    def based(self, base: Sequence[Tensor]) -> Tensor:
        """The matrix (m, n), float64, that the tensors of ``base`` stand for."""
        raise NotImplementedError(f"form {self}: based(base) is missing")

    def flops(self, layer: Layer, rank: int, calls: Sequence[Call]) -> int:
        """Two for each multiply-add, as ``torch.utils.flop_counter`` counts; biases are free."""
        raise NotImplementedError(f"form {self}: flops(layer, rank, calls) is missing")

    def skeleton(self, layer: Layer, old: Any, rank: int, bias: bool) -> nn.Module:
        """The new layer on the meta device, of the old one's dtype, not filled."""
        raise NotImplementedError(f"form {self}: skeleton(layer, old, rank, bias) is missing")

    def begin_(self, new: Any) -> None:
        """Give a layer that is not filled the buffers with which it can be run, to be timed; none by default."""

    def write_(self, layer: Layer, new: Any, factors: Factors) -> None:
        """Fill a layer that ``skeleton`` made."""
        raise NotImplementedError(f"form {self}: write_(layer, new, factors) is missing")

    def __deepcopy__(self, memo: Any) -> Form:
        return self

    def __copy__(self) -> Form:
        return self

    def __reduce__(self) -> Any:
        return form_named, (str(self),)

    def __str__(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"<Form {str.__str__(self)}>"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(form_named, core_schema.str_schema())


_REGISTERED: dict[str, Form] = {}


def register(form: F) -> F:
    """Make a form known by its name, to plans and to files that name it; returns it."""
    if type(form) is Form or not isinstance(form, Form):
        raise TypeError(f"a form must be an instance of a subclass of Form, got {type(form).__name__}")
    _REGISTERED[str(form)] = form
    return form


def form_named(name: str) -> Form:
    """The form registered under ``name``; a form is returned as it is. ``ValueError`` if there is none."""
    if isinstance(name, Form):
        return name
    if name in _REGISTERED:
        return _REGISTERED[name]
    raise ValueError(
        f"there is no form named {name!r}: the forms are {', '.join(_REGISTERED)}. Register a form of your own "
        "before reading a plan that names it (rankfold.forms.register)"
    )


def offered(layer: Layer) -> frozenset[Form]:
    """Every registered form that a layer can take without being asked for."""
    return frozenset(form for form in _REGISTERED.values() if not form.optional and form.offered(layer))
