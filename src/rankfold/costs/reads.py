"""Weights that are read without a call of their layer: which reads a factored layer answers at the thin cost.

A forward of the dense model is watched. What becomes of a read once the layer is factored is asked of the very rules
that will answer it (``rankfold.layers``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from rankfold.costs.counter import Counter
from rankfold.layers.weights.kernels import Pair
from rankfold.layers.weights.matrices import Matrix
from rankfold.layers.weights.operations import CASTS, LOOKS, SAME, STAYS, casts, name_of, only_seen, turns, writes
from rankfold.layers.weights.rule import Rule
from rankfold.layers.weights.weight import FactoredWeight
from rankfold.observe import after, before, first_of
from rankfold.observe.watch import Coming, Seen
from rankfold.sites import Call, Form, Site


class WeightReads(TorchFunctionMode):
    """Within the block: every use of a site's weight outside of a call of its own layer.

    ``calls``: those that will run on thin factors, as calls of the layer. ``others``: sites whose weight is read in
    another way, where a factored layer would multiply its factors out or refuse, with the reason.
    """

    def __init__(self, layers: Sequence[tuple[Site, nn.Module]], counter: Counter) -> None:
        super().__init__()
        self.counter = counter
        self.calls: dict[str, list[Call]] = defaultdict(list)
        self.others: dict[str, str] = {}
        self.inside: set[str] = set()
        self._rules: dict[str, Rule] = {}
        # by identity: the weight itself, then what stays a product of factors; held, so that no identity is used twice
        self._known: dict[int, tuple[Tensor, Site]] = {}
        for site, module in layers:
            if site.forms - {Form.KEEP}:
                weight, conv = site.layer.weight(module), site.layer.convolution
                self._rules[site.name] = Matrix() if conv is None else Pair(conv.groups, conv.transposed)
                self._known[id(weight)] = (weight, site)
        self._weights = tuple(self._known.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in _HARMLESS:
            return func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        if any(isinstance(leaf, FactoredWeight) for leaf in leaves):
            with self:  # the factors may be sites themselves: what it does with them counts
                return FactoredWeight.__torch_function__(func, types, args, kwargs)
        self._written(name, args, kwargs)
        since = self.counter.now()
        result = func(*args, **kwargs)
        known = [self._known[id(leaf)] for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) in self._known]
        outside = [found for found in known if found[1].name not in self.inside]
        for found in outside:
            self._note(name, func, args, kwargs, result, *found, alone=len(outside) == 1, since=since)
        return result

    def _written(self, name: str, args: Any, kwargs: Any) -> None:
        """Whether the call writes numbers into a weight, by whatever view: a hook of the layer's own may do so within a
        call of it, where reads are its business."""
        into = kwargs["out"] if kwargs.get("out") is not None else first_of(args, kwargs)
        if not self.inside or not isinstance(into, Tensor) or not (into is kwargs.get("out") or _writes_numbers(name)):
            return
        if name == "data.set" and (args[1].dtype, args[1].device) != (into.dtype, into.device):
            return  # it is widened or moved for the call, as factors would be
        for weight, site in self._weights:
            if site.name in self.inside and _same_memory(into, weight):
                self.others.setdefault(
                    site.name,
                    f"its weight is written by {name.removesuffix('.set')} at every call, as by a hook, and factors "
                    "cannot be written to",
                )

    def _note(
        self,
        name: str,
        func: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        weight: Tensor,
        site: Site,
        *,
        alone: bool,
        since: tuple[int, int],
    ) -> None:
        first = first_of(args, kwargs)
        if first is weight and not site.layer.lookup and self._stays(name, args, kwargs, weight, site):
            self._known[id(result)] = (result, site)
            return
        if only_seen(name, args, weight):
            return
        alone = (
            alone and not site.layer.lookup
        )  # what is looked up and multiplied by costs otherwise than it is counted
        thin = None if writes(name) and first is weight else self._rules[site.name].thin(func, args, kwargs, weight)
        if thin is None or not alone or kwargs.get("out") is not None:
            what = "written by" if writes(name) and first is weight else "read by"
            self.others.setdefault(
                site.name,
                    f"its weight is {what} {name.removesuffix('.get')} outside of the layer's own call, for which "
                    "the factors must be multiplied out"
                ,
            )  # fmt: skip
            return
        m, n = site.shape
        shape_in, shape_out = tuple(thin.input.shape), tuple(result.shape)
        if weight.dim() == 2:  # only the number of rows counts, whichever side is summed over
            rows = result.numel() // weight.shape[thin.output_axis]
            shape_in, shape_out = (rows, n), (rows, m)
        call = Call(shape_in, shape_out)
        self.calls[site.name].append(call)
        self.counter.mark(since, site.name, call)

    def _stays(self, name: str, args: Any, kwargs: Any, weight: Tensor, site: Site) -> bool:
        """Whether the result is a product of factors again."""
        if name not in STAYS:
            return False
        if name in CASTS:
            return casts(name, args, kwargs)
        if name in _SAME_SIDE:
            return not kwargs and len(args) == 1
        return self._rules[site.name].turned() is not None and turns(name, args, kwargs, weight.dim())


def _writes_numbers(name: str) -> bool:
    return name == "data.set" or (writes(name) and not name.endswith(".set") and name not in _SETTINGS)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    plain = all(x.layout is torch.strided and not is_functorch_wrapped_tensor(x) for x in (a, b))
    return a is b or (plain and a.untyped_storage()._cdata == b.untyped_storage()._cdata)


_SETTINGS = frozenset({"requires_grad_", "detach_", "share_memory_", "rename_"})
_SAME_SIDE = CASTS | SAME
_HARMLESS = LOOKS | {
    "requires_grad.get", "requires_grad_", "is_leaf.get", "grad.get", "layout.get", "is_sparse.get", "stride",
    "is_contiguous", "storage_offset", "nbytes.get", "__repr__", "__format__", "_has_compatible_shallow_copy_type",
}  # fmt: skip


TRANSFORMED = "it is called inside of torch.func (vmap, grad, jvp), where what it gives cannot be looked at"
NESTED = "it is called with nested tensors, whose rows have lengths of their own"
Read = tuple[Any, ...]  # equal for the very same numbers in the same shape, by memory and version


class Calls:
    """Calls of the sites' layers with their shapes, within a block; ``reads.inside`` holds those that are running."""

    def __init__(self, layers: Sequence[tuple[Site, nn.Module]], reads: WeightReads) -> None:
        self.seen: dict[str, list[Call]] = defaultdict(list)
        self.read: dict[str, list[Read]] = defaultdict(list)  # what each layer was given
        self._alive: list[Any] = []  # an address is that of one memory only while it lives
        self._begun: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._layers, self._reads = layers, reads
        self._stack = ExitStack()

    def __enter__(self) -> Calls:
        entering: dict[nn.Module, list[Coming]] = defaultdict(list)
        noting: dict[nn.Module, list[Seen]] = defaultdict(list)
        leaving: dict[nn.Module, list[Seen]] = defaultdict(list)
        for site, module in self._layers:
            entering[module].append(self._enter(site.name))
            noting[module].append(self._note(site.name))
            leaving[module].append(self._leave(site.name))
        # around the layer's own hooks, which may move or widen it for the call
        self._stack.enter_context(before(None, entering, first=True))
        self._stack.enter_context(after(None, noting))
        self._stack.enter_context(after(None, leaving, last=True))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._reads.inside.add(name)
            self._begun[name].append(self._reads.counter.now())
            given = first_of(args, kwargs)
            if isinstance(given, Tensor) and given.is_nested:
                self._reads.others.setdefault(name, NESTED)
            elif isinstance(given, Tensor) and is_functorch_wrapped_tensor(given):
                self._reads.others.setdefault(name, TRANSFORMED)
            elif isinstance(given, Tensor):
                memory = given.untyped_storage()
                self._alive.append(memory)
                version = -1 if given.is_inference() else given._version
                place = (memory._cdata, given.storage_offset(), version)
                self.read[name].append((*place, tuple(given.shape), given.stride(), given.dtype))

        return enter

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given, begun = first_of(args, kwargs), self._begun[name].pop()
            if any(isinstance(x, Tensor) and x.is_nested for x in (given, output)):
                self.seen[name].append(Call((0,), (0,)))  # it is kept
                return
            call = Call(tuple(given.shape), tuple(output.shape))
            self.seen[name].append(call)
            self._reads.counter.mark(begun, name, call)

        return note

    def _leave(self, name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: self._reads.inside.discard(name)
