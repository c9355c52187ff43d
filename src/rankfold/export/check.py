"""What was exported beside the model, on random input of several sizes; axes at which they differ are fixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rankfold.batches import as_found
from rankfold.costs import Example, evaluating
from rankfold.export.errors import ExportError, first_line
from rankfold.export.outputs import answering, in_a_row, names_of
from rankfold.export.slender import doubled, slender
from rankfold.export.trace import Axis, Traced, other_sizes, traced
from rankfold.export.written import Written
from rankfold.run.progress import Tell

_ENOUGH = 2  # other sizes at which the model itself runs
_NEAR_TIES = 0.01  # of whole numbers, such as the place of a maximum, that rounding may turn

Made = TypeVar("Made")
Run = Callable[[Example], Sequence[Tensor]]


def exported(
    root: nn.Module,
    change: Callable[[Any], Any],
    example: Example,
    output: Any,
    make: Callable[[Traced, Sequence[str]], tuple[Made, Run]],
    who: str,
    tell: Tell,
) -> tuple[Made, Written]:
    """What ``make`` makes of the freest graph that computes ``change`` of what ``root`` gives, and the largest
    difference from what ``root`` gives.

    ``make`` is given names for the tensors in ``output``, the model's own answer to the example, and also gives a way
    to run it; ``who`` is named in errors. Compared at two batch sizes, and at other sizes of every free axis at which
    the model itself runs. An axis at which it never does, or at which the two differ, is fixed as in the example.
    ``ExportError`` where not even the batch is free.
    """
    fixed: set[Axis] | None = set()  # None: every axis but the first
    again = ""
    with as_found(root), evaluating(root), answering(root, change, example.kwargs) as twin:
        wide = slender(root, example)
        while True:
            wrong: list[Any] = []
            tell.say(f"tracing the model{again}")
            again = " again, with fewer free axes"
            try:
                graph = traced(twin, doubled(example, wide), fixed)
                constant = {(which, place) for which, place in wide if graph.fixes(which, place)}
                if constant:
                    wide -= constant
                    continue
                names = names_of(output, [*graph.inputs, *graph.program.state_dict])
                tell.say("writing the graph")
                made, run = make(graph, names)
                tell.say(f"comparing {who} with the model at several sizes")
                check = _Check(root, graph, run, tuple(names), who)
                wrong = check.unfit()
                if not wrong:
                    sizes = [check.at(3), check.at(1), *([check.of(example)] if wide else [])]
                    return made, Written(max(*sizes, *check.differences), graph.shapes, graph.at_most)
            except ExportError:
                if fixed is None and not wide:
                    raise
            if wrong and fixed is not None:
                fixed = fixed | graph.axes(wrong)
                wide -= fixed
            elif wide:
                wide = set()
            else:
                fixed = None


@dataclass(frozen=True, eq=False)
class _Check:
    """The model and what was made of it, side by side. ``differences``: of what was compared so far."""

    root: nn.Module
    graph: Traced
    run: Run
    names: tuple[str, ...]
    who: str
    differences: list[float] = field(default_factory=list)

    @cached_property
    def noise(self) -> bool:
        """Whether the model answers normal noise in numbers; else it is asked with rows of the example, as one that
        takes logarithms, or ids among its floats."""
        try:
            answered = self._expected(self.graph.resized({}, 2, _drawn()))
        except Exception:  # what the model does not take, which it may say in any way
            return False
        return not any(bool(x.isnan().any()) for x in answered)

    def unfit(self) -> list[Any]:
        """The free axes, as symbols, that must be fixed."""
        free = self.graph.free
        alone = [[symbol] for symbol in free]
        if not free or self._fits(alone) or self._fits(self.graph.alike):
            return []
        return [group[0] for group in alone if not self._fits([group])] or free

    def _fits(self, groups: Sequence[Sequence[Any]]) -> bool:
        """Whether the two agree wherever the model itself runs at other sizes of these axes, and somewhere it does."""
        ran = 0
        for sizes in other_sizes(self.graph, groups):
            given = self._given(sizes, 2)
            try:
                expected = self._expected(given)
            except Exception:  # a size that the model does not take, which it may say in any way
                continue
            try:
                self.differences.append(self._compared(given, expected))
            except ExportError:
                return False
            ran += 1
            if ran == _ENOUGH:
                break
        return ran > 0

    def at(self, batch: int) -> float:
        """The largest difference in a batch of this size; ``ExportError`` if it is more than rounding."""
        return self.of(self._given({}, batch))

    def of(self, given: Example) -> float:
        """The same of this input."""
        try:
            expected = self._expected(given)
        except Exception as error:  # the user's own forward
            raise ExportError(
                f"the model does not run on a batch of {given.samples} made of the example, which it must for the size "
                f"of the batch to be free: {first_line(error)}; give an example whose inputs have the samples of one "
                "batch along their first axes"
            ) from error
        return self._compared(given, expected)

    def _given(self, sizes: Mapping[Any, int], batch: int) -> Example:
        return self.graph.resized(sizes, batch, _drawn() if self.noise else None)

    def _expected(self, given: Example) -> tuple[Tensor, ...]:
        with evaluating(self.root):
            return in_a_row(self.root(*given.args, **given.kwargs))

    def _compared(self, given: Example, expected: Sequence[Tensor]) -> float:
        with torch.no_grad():
            found = self.run(given)
        if len(found) != len(expected):
            raise ExportError(f"{self.who} gives {len(found)} tensors where the model gives {len(expected)}")
        pairs = zip(self.names, expected, found, strict=True)
        on = "random input" if self.noise else "rows of the example"
        return max((difference(a, b, name, self.who, on) for name, a, b in pairs), default=0.0)


def _drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def difference(expected: Tensor, found: Tensor, name: str, who: str, on: str) -> float:
    """The largest one between two tensors of the same output, NaN and infinities being equal to themselves;
    ``ExportError`` for more than rounding. ``on``: which input, for the error."""
    if expected.shape != found.shape:
        raise ExportError(f"{name}: {who} gives {tuple(found.shape)} where the model gives {tuple(expected.shape)}")
    if not expected.is_floating_point():
        share = float((expected.cpu() != found.cpu()).double().mean()) if expected.numel() else 0.0
        if share > _NEAR_TIES:
            raise ExportError(f"{name}: {who} gives other whole numbers than the model, in {share:.0%} of the places")
        return 0.0
    a, b = expected.cpu().double(), found.cpu().double()
    alike = (a == b) | (a.isnan() & b.isnan())
    worst = float(torch.where(alike, 0.0, (a - b).abs()).max()) if a.numel() else 0.0
    scale = max(float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0, 1.0)
    if not worst <= min(2000 * torch.finfo(expected.dtype).eps, 0.1) * scale:
        raise ExportError(
            f"{name}: {who} differs from the model by up to {worst:.3g} on {on}, whose outputs are up to {scale:.3g}"
        )
    return worst
