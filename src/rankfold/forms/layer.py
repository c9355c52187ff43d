"""What a form needs to know of a layer: its matrix, whether it is a convolution, and how its rows of data are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rankfold.forms.form import Call, Factors, Form, offered
from rankfold.forms.geometry import Matricization

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Convolution:
    """The setting of a convolution that its forms depend on."""

    channels_in: int
    channels_out: int
    kernel: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def points(self) -> int:
        return prod(self.kernel)


@dataclass(frozen=True)
class Share:
    """What one layer of a group has of the group's matrix, ``total`` outputs in all: the ``first`` one holds the shared
    factor; ``rows``: how many of its outputs that factor gives itself."""

    total: int
    rows: int
    first: bool


class Layer:
    """How one type of layer is read, counted and rebuilt. The only objects that know a layer's type.

    A layer type of one's own is a subclass (most simply of ``LinearLayer``), made by a reader that is registered with
    ``rankfold.sites.register_reader``.
    """

    kind: str
    has_bias: bool
    stored_transposed: bool = False  # the parameter is Wᵀ
    lookup: bool = False  # rows are picked, not multiplied: an embedding
    members: tuple[int, ...] = ()  # outputs of the layers of a group that reads one tensor, whose matrix this is
    share: Share | None = None  # of a layer that shares its first factor with others of a group
    experts: int = 0  # whose matrices lie below one another, or side by side, in the matrix of this layer
    entering: bool = False  # of experts: below one another, and so multiplied by one input
    whole: bool = False  # moments of inputs and the metric of outputs are taken whole: not all factors are the weight's
    takes_bias: bool = True  # whether a layer in its place may carry a bias that it has not
    parameter: str = "weight"  # the attribute that holds the matrix
    convolution: Convolution | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) = (outputs, inputs), for each of ``groups``."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        return 1

    @property
    def side(self) -> Side:
        """Where second moments are taken: where the matrix is smaller, or at the inputs if a form needs them."""
        return "output" if self.shape[0] <= self.shape[1] else "input"

    def wholly(self) -> Layer:
        """The same, observed so that any matrix in its place can be weighed and not its own alone; itself where such
        moments are not taken."""
        return self

    @property
    def tapped(self) -> Side:
        """Where gradients are taken for the metric of its outputs; at the inputs they are those times the matrix."""
        return "output"

    def slots(self, call: Call) -> int:
        """Of experts: in one call, products by the matrix of one of them."""
        raise NotImplementedError

    @property
    def matricization(self) -> Matricization:
        """How the parameter is read as a matrix (m, n), or (groups, m, n)."""
        raise NotImplementedError

    def weight(self, module: nn.Module) -> Tensor:
        return getattr(module, self.parameter)

    def rows(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """The data at ``side`` as rows (N, d), or (groups, N, d); of a convolution's input patches a sample."""
        raise NotImplementedError

    def paired_rows(self, module: nn.Module, inputs: Tensor, *outputs: Tensor) -> tuple[Tensor, ...] | None:
        """Rows of the input (N, n) and of every output (N, m), or with a leading group axis, that belong together.

        Of a convolution a sample. None for a layer whose output at one place is no product with one row (transposed
        convolutions).
        """
        raise NotImplementedError

    def output_rows(self, output: Tensor) -> Tensor:
        """A layer's output as rows (N, m), or (groups, N, m)."""
        raise NotImplementedError

    def dense(self, old: Any, bias: bool) -> nn.Module:
        """The layer itself on the meta device, with or without a bias, not filled."""
        raise NotImplementedError

    def dense_flops(self, calls: Sequence[Call]) -> int:
        raise NotImplementedError

    # what a form does with this layer, said from the layer's side

    @property
    def forms(self) -> frozenset[Form]:
        return offered(self)

    def max_rank(self, form: Form) -> int:
        return form.max_rank(self)

    def geometry(self, form: Form) -> Matricization:
        return form.geometry(self)

    def params(self, form: Form, rank: int, bias: bool) -> int:
        return form.params(self, rank, bias)

    def flops(self, form: Form, rank: int, calls: Sequence[Call]) -> int:
        """Two for each multiply-add, as ``torch.utils.flop_counter`` counts; biases are free."""
        return form.flops(self, rank, calls)

    def skeleton(self, like: Any, form: Form, rank: int, bias: bool) -> nn.Module:
        """The new layer with parameters of the right shape, dtype and device, not filled; no random number is drawn."""
        place = self.weight(like).device  # ``to_empty`` would import a compiler for tensors on the meta device
        made = form.skeleton(self, like, rank, bias)._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=place))
        form.begin_(made)
        return made

    @torch.no_grad()
    def write_(self, layer: Any, form: Form, factors: Factors) -> None:
        form.write_(self, layer, factors)
