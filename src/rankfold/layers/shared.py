"""Linear layers that read one tensor and share their first factor: what it gives is computed once for all of them.

The first layer of such a group holds ``down`` (r, n); the others know the first, and are not whole without it. Of the
matrices below one another r rows are what ``down`` gives; each layer holds what its other rows are made of them.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.layers.linear import LowRankLinear
from rankfold.layers.pivoted import Completion
from rankfold.layers.weights.matrices import PivotedMatrix
from rankfold.layers.weights.rule import Factors
from rankfold.layers.weights.scripting import Traced
from rankfold.layers.weights.weight import weight_of


@dataclass(frozen=True)
class SharedMatrix(PivotedMatrix):
    """Some rows of a ``PivotedMatrix``: ``order`` (m,) names the rows of [B; C B] that are those of the weight."""

    def turned(self) -> SharedMatrix:
        return SharedMatrix(self.order, not self.across)

    def _condensed(self, x: Tensor, factors: Factors) -> Tensor:
        rows, rest = self._stored(factors)
        whole = x.new_zeros(*x.shape[:-1], len(rows) + len(rest)).index_add(-1, self.order, x)
        return (whole[..., : len(rows)] + whole[..., len(rows) :] @ rest) @ rows


class Share(Completion):
    """``z ↦ [z; rest(z)]``, of which the outputs of one layer are picked by ``order`` (m,): those that another layer of
    the group has are not among them. ``rows``: how many of the z are."""

    def __init__(self, rest: nn.Linear, rank: int, rows: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(rest, rank, bias=False, **factory)
        self.out_channels = self.out_features = size = rows + len(rest.weight)
        self.bias = nn.Parameter(torch.empty(size, **factory)) if bias else None
        self.register_buffer("order", torch.empty(size, dtype=torch.int32, device=factory.get("device")))


class Shared(Traced, LowRankLinear):
    """One of the layers of a group. ``number``: which; ``members``: how many there are."""

    unscripted = ("which shares its first factor with other layers", "the form 'shared'")
    number: int = 0
    members: int = 1

    def __init__(self, n: int, rank: int, m: int, rows: int, bias: bool = True, **factory: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.rank, self.out_features = n, rank, m
        self.up = Share(nn.Linear(rank, m - rows, bias=False, **factory), rank, rows, bias, **factory)

    @property
    def first(self) -> SharedFirst:
        raise NotImplementedError

    def _product(self) -> Tensor:
        return weight_of(SharedMatrix(self.up.order), (self.first.down.weight, self.up.rest.weight))

    def forward(self, input: Tensor) -> Tensor:
        return self.up(self.first.between(input, self.number))


class SharedFirst(Shared):
    """The layer that holds the shared factor ``down`` (r, n), and gives what it makes of an input to the others."""

    def __init__(self, n: int, rank: int, m: int, rows: int, bias: bool = True, **factory: Any) -> None:
        super().__init__(n, rank, m, rows, bias, **factory)
        self.down = nn.Linear(n, rank, bias=False, **factory)
        self.kept = Kept()

    @property
    def first(self) -> SharedFirst:
        return self

    def between(self, input: Tensor, number: int) -> Tensor:
        """What ``down`` gives: computed for the first layer that asks, and the same for the others of one forward pass.

        Where gradients are recorded, while torch compiles, exports or traces, within transforms of ``torch.func``, in
        inference mode and for memory shared with numpy, where a change of the input would not be seen, each computes it
        for itself; compilers then merge equal products."""
        if self.members < 2 or not _can_remember(input, self.down):
            return self.down(input)
        return self.kept.product(self.down, input, number, self.members)


class SharedNext(Shared):
    """A layer of the group that reads the shared factor of the ``first``, which holds it."""

    def joins_(self, first: SharedFirst) -> None:
        self.__dict__["_first"] = (first,)  # in a tuple: it is no part of this layer, and its weights are not its own

    @property
    def first(self) -> SharedFirst:
        if "_first" not in self.__dict__:
            raise RuntimeError(
                "this layer uses a factor that another layer holds, and the two were not joined: load the model "
                "with rankfold.load, or make it with rankfold.apply_"
            )
        return self.__dict__["_first"][0]

    @property
    def down(self) -> nn.Linear:  # type: ignore[override]  # nobody may give it one of its own
        """Of the first layer."""
        return self.first.down


@dataclass
class _Known:
    """A product for one input. ``key``: tells the input and what it was multiplied by; ``owner``: of its memory, for as
    long as which the key means something; ``cell`` holds the product, and nothing once the owner is gone. ``some`` of
    the weights, and what they were: what is written to ``.data`` does not count as a change."""

    key: Any
    owner: weakref.ref[Tensor]
    cell: list[Tensor]
    some: tuple[Tensor, list[float]] | None
    used: set[int] = field(default_factory=set)


class Kept(threading.local):
    """The last product of a shared factor, of this thread, until every layer of the group has had it.

    A layer that asks a second time begins anew: it is another forward pass. Copies and files hold none."""

    known: _Known | None = None

    def product(self, down: nn.Linear, x: Tensor, number: int, members: int) -> Tensor:
        owner, key, known = x._base if x._base is not None else x, _key(x, down), self.known
        same = known is not None and known.key == key and number not in known.used and known.owner() is owner
        if known is not None and same and (known.some is None or known.some[0].tolist() == known.some[1]):
            product = known.cell[0]
            known.used.add(number)
            if len(known.used) == members:
                self.known = None
            return product
        some = _some(down)
        product = down(x)
        cell = [product]
        self.known = _Known(key, weakref.ref(owner, lambda _: cell.clear()), cell, some, {number})
        return product

    def __reduce__(self) -> Any:
        return Kept, ()


def _key(x: Tensor, down: nn.Linear) -> Any:
    weight: Any = getattr(down, "weight", None)
    device = x.device.type
    return (
        x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype, x._version,
        id(down), id(weight), getattr(weight, "_version", 0), type(weight) is nn.Parameter and weight.data_ptr(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
    )  # fmt: skip


def _some(down: nn.Module) -> tuple[Tensor, list[float]] | None:
    """A few of the weights in their own memory, and what they are. None on accelerators, which would have to wait."""
    weight = getattr(down, "weight", None)
    if type(weight) is not nn.Parameter or not weight.is_cpu or not weight.is_contiguous():
        return None
    few = max(1, min(8, weight.numel()))
    there = weight.as_strided((few,), (weight.numel() // few,))
    return there, there.tolist()


def _can_remember(x: Tensor, down: nn.Module) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    if traced or type(x) not in (Tensor, nn.Parameter) or x.is_inference():
        return False
    # memory of numpy, or of another process: nobody tells what is written there
    if not x.untyped_storage().resizable():
        return False
    recorded = x.requires_grad or any(parameter.requires_grad for parameter in down.parameters())
    return not (recorded and torch.is_grad_enabled())


def join_(layer: Any, first: Any, number: int, members: int) -> None:
    """Make ``layer`` the one of this ``number`` in the group of ``members`` layers whose factor ``first`` holds."""
    layer.number, layer.members = number, members
    if isinstance(layer, SharedNext):
        layer.joins_(first)
