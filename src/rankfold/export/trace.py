"""A model as a graph in which every axis is free that the model itself does not fix."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankfold.batches import Listed, as_found
from rankfold.costs import Example, evaluating, with_batch
from rankfold.export.errors import ExportError, first_line, quiet
from rankfold.objectives.answer import named_tensors
from rankfold.sites import unwrap

Axis = tuple[int, int]  # which input, of all in a row, and which of its axes

_ANY = 1 << 20  # samples in a batch that has no bound of its own
_SPATIAL = {4: ("height", "width"), 5: ("depth", "height", "width")}


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph. ``inputs``: name of every tensor that goes in, in a row; ``sizes``: of each its axes, a number where the
    graph fixes it and an expression of symbols where it does not; ``batch``: the symbol of the first axis."""

    program: torch.export.ExportedProgram
    example: Example
    inputs: tuple[str, ...]
    sizes: tuple[tuple[Any, ...], ...]

    @property
    def batch(self) -> Any:
        return next((axes[0] for axes in self.sizes if axes and not _whole(axes[0])), None)

    @property
    def free(self) -> list[Any]:
        """The symbols of other axes than the first."""
        found: dict[Any, None] = {}
        for size in (size for axes in self.sizes for size in axes if not _whole(size)):
            found |= dict.fromkeys(sorted(size.free_symbols, key=str))
        return [symbol for symbol in found if symbol != self.batch]

    @property
    def names(self) -> dict[str, str]:
        """A name for every symbol, for whoever reads the file."""
        found: dict[str, str] = {str(self.batch): "batch"} if self.batch is not None else {}
        for name, axes in zip(self.inputs, self.sizes, strict=True):
            for place, size in enumerate(axes):
                if not _whole(size) and size.is_Symbol and str(size) not in found:
                    title = _title(place, len(axes))
                    found[str(size)] = title if title not in found.values() else f"{name}_{title}"
        return found

    def fixes(self, which: int, place: int) -> bool:
        return _whole(self.sizes[which][place])

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Of every input its axes, those that are free by their names."""
        return {
            name: tuple(size if _whole(size) else self.named(str(size)) for size in axes)
            for name, axes in zip(self.inputs, self.sizes, strict=True)
        }

    @property
    def at_most(self) -> dict[str, int]:
        """The largest size of every free axis that has one, by its name."""
        free = [*([] if self.batch is None else [self.batch]), *self.free]
        most = {self.named(str(symbol)): self.bounds(symbol)[1] for symbol in free}
        return {name: int(high) for name, high in most.items() if high < _ANY}

    def named(self, expression: str) -> str:
        """An expression of torch's symbols in ``names``."""
        return re.sub(r"\bs\d+\b", lambda found: self.names.get(found[0], found[0]), expression)

    def axes(self, symbols: Sequence[Any]) -> set[Axis]:
        """Where these symbols stand."""
        return {
            (which, place)
            for which, axes in enumerate(self.sizes)
            for place, size in enumerate(axes)
            if not _whole(size) and size.free_symbols & set(symbols)
        }

    @property
    def alike(self) -> list[list[Any]]:
        """``free``, those in one group that stand at the same place of several inputs and have one size: tokens and
        their mask."""
        groups: dict[tuple[int, int], list[Any]] = {}
        for symbol in self.free:
            place = min(place for _, place in self.axes([symbol]))
            groups.setdefault((place, self.hint(symbol)), []).append(symbol)
        return list(groups.values())

    def hint(self, symbol: Any) -> int:
        """Its size in the example."""
        tensors = flat(self.example)
        return next(
            tensors[which].shape[place]
            for which, axes in enumerate(self.sizes)
            for place, size in enumerate(axes)
            if not _whole(size) and size == symbol
        )

    def bounds(self, symbol: Any) -> tuple[int, float]:
        known = self.program.range_constraints.get(symbol)
        if known is None:
            return 2, float("inf")
        return max(2, int(known.lower)), int(known.upper) if known.upper.is_Integer else float("inf")

    def resized(self, values: Mapping[Any, int], batch: int, generator: torch.Generator | None) -> Example:
        """The example at other sizes: its own numbers again and again; with a generator normal noise for floats."""
        given = {**{symbol: self.hint(symbol) for symbol in self.free}, **values}
        if self.batch is not None:
            given[self.batch] = batch
        sizes = iter(self.sizes)

        def resize(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            shape = [size if _whole(size) else int(size.subs(given)) for size in next(sizes)]
            if generator is not None and x.is_floating_point():
                return torch.randn(shape, generator=generator).to(x)
            for place, size in enumerate(shape):
                x = x.index_select(place, torch.arange(size, device=x.device) % x.shape[place])
            return x

        leaves, spec = pytree.tree_flatten((self.example.args, dict(self.example.kwargs)))
        args, kwargs = pytree.tree_unflatten([resize(leaf) for leaf in leaves], spec)
        return Example(args, kwargs, batch)


def ready(model: nn.Module, example: Any) -> tuple[nn.Module, Example]:
    """The model without wrappers, and the example in its precision; ``ExportError`` for what cannot be traced."""
    root = unwrap(model)
    if isinstance(root, torch.jit.ScriptModule):
        raise ExportError(
            "the model is TorchScript, which cannot be traced again: export the network that it was made from, "
            "or keep it as it is (torch.jit.save)"
        )
    given = Example.of(example)
    if any(isinstance(value, Listed) for value in (*given.args, *given.kwargs.values())):
        raise ExportError(
            "the model takes a list of samples, of which a graph would have a fixed number: export a module whose "
            "forward takes them as one tensor, such as the part of the model that all of them go through"
        )
    return root, in_order(root, given.fitting(root.modules()))


def answer(root: nn.Module, example: Example) -> Any:
    """What the model says to the example; ``ExportError`` if it does not take it, or says nothing."""
    with evaluating(root), as_found(root):
        try:
            output = root(*example.args, **example.kwargs)
        except Exception as error:  # the user's own forward
            raise ExportError(f"the model cannot be called with the example: {first_line(error)}") from error
    if not named_tensors(output):
        raise ExportError(
            f"the model returned a {type(output).__name__}, in which there is no tensor: export a module whose forward "
            "returns tensors, alone or in a tuple, a mapping or a dataclass"
        )
    return output


def traced(root: nn.Module, example: Example, fixed: Set[Axis] | None) -> Traced:
    """``root`` in eval mode with the first axis of every batched tensor free, and every other one that the model lets
    free and that is not in ``fixed``; None fixes them all. ``ExportError`` where torch cannot."""
    given = in_order(root, with_batch(example, 2))  # a batch of 1 would be taken for a constant
    with evaluating(root), quiet():
        try:
            program = _program(root, given, fixed, _ANY)
        except Exception as error:  # tracing runs the user's own forward, and torch raises exceptions of many kinds
            # the model itself takes another way from some batch on: this one holds below
            largest = re.search(r"Dim\('batch'.*?max=(\d+)\)", str(error))
            if largest is None:
                raise ExportError(_why_not(error)) from error
            program = _program(root, given, fixed, int(largest[1]))
    return Traced(program, given, *_read(program, given))


def _why_not(error: Exception) -> str:
    if "to be a constant" in str(error) and "batch" in str(error):
        return (
            "torch cannot trace this model for batches of any size, as its code turns the size of the batch into a "
            "constant: write x.shape[0] where it says len(x), and leave out int(…) and .item() around sizes"
        )
    return f"torch cannot trace this model: {first_line(error)}"


def _program(root: nn.Module, given: Example, fixed: Set[Axis] | None, most: int) -> torch.export.ExportedProgram:
    """The graph for batches of at most so many."""
    batch, shapes = torch.export.Dim("batch", min=1, max=most), torch.export.ShapesCollection()
    for which, value in enumerate(flat(given)):
        axes: dict[int, Any] = {}
        for place in range(value.dim()):
            if place == 0 and value.shape[0] == given.samples:
                axes[0] = batch
            elif fixed is not None and (which, place) not in fixed:
                axes[place] = torch.export.Dim.AUTO
        if axes:
            shapes[value] = axes
    args, kwargs = given.args, dict(given.kwargs)
    return torch.export.export(
        root, args, kwargs, dynamic_shapes=shapes.dynamic_shapes(root, args, kwargs), strict=False
    )


def _read(program: torch.export.ExportedProgram, given: Example) -> tuple[tuple[str, ...], tuple[tuple[Any, ...], ...]]:
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    leaves = pytree.tree_leaves((given.args, dict(given.kwargs)))
    names = tuple(
        str(name)
        for name, leaf in zip(program.graph_signature.user_inputs, leaves, strict=True)
        if isinstance(leaf, Tensor)
    )
    return names, tuple(tuple(_size(size) for size in values[name].shape) for name in names)


def _size(size: Any) -> Any:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else expression


def _whole(size: Any) -> bool:
    return isinstance(size, int)


def _title(place: int, dims: int) -> str:
    """What an axis is usually called."""
    if dims in _SPATIAL and place >= 2:
        return _SPATIAL[dims][place - 2]
    return {1: "sequence", 2: "length"}.get(place, f"axis_{place}") if dims <= 3 else f"axis_{place}"


def flat(example: Example) -> list[Tensor]:
    """Every tensor of an example in a row."""
    return [x for x in pytree.tree_leaves((example.args, dict(example.kwargs))) if isinstance(x, Tensor)]


def in_order(root: nn.Module, example: Example) -> Example:
    """Keyword arguments in the order of the signature, in which torch names them."""
    order = list(inspect.signature(root.forward).parameters)
    kwargs = {name: example.kwargs[name] for name in order if name in example.kwargs}
    return Example(example.args, {**kwargs, **example.kwargs}, example.samples)


def other_sizes(traced: Traced, groups: Sequence[Sequence[Any]]) -> Iterator[dict[Any, int]]:
    """Sizes of free axes other than the example's, the same within a group: longer ones first, different for each."""
    choices = []
    for turn, group in enumerate(groups):
        hint, bounds = traced.hint(group[0]), [traced.bounds(symbol) for symbol in group]
        low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
        wanted = [2 * hint, hint + hint // 2, hint // 2, hint + 1, hint - 1]
        fitting = [size for size in wanted if low <= size <= high and size != hint]
        choices.append(fitting[turn % 2 :] + fitting[: turn % 2])
    for sizes in zip(*choices):
        yield {symbol: size for group, size in zip(groups, sizes, strict=True) for symbol in group}
