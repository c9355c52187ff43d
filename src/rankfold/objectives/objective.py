"""An objective: what the outputs of a model and its targets mean. Nothing else in rankfold looks at either.

An objective answers four questions about a batch: which tensors of the output count (``answers``), how far they moved
from those of another network (``divergence``, ``distance``), what training minimises (``loss``), and how good the
network is (``figures``). The first two need no targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.batches import labels_of, size_of
from rankfold.objectives.answer import Answer, counting_tensors, main_tensor, single

_TINY = 1e-30


class ObjectiveError(ValueError):
    """Outputs or targets are not what the objective expects; one line that names what was expected and given."""


@dataclass(frozen=True)
class Figure:
    """One number about a network. ``unit``: "fraction" (printed in per cent), "nats", or "" for a plain number."""

    name: str
    value: float
    higher: bool = True
    unit: str = ""

    def better(self, other: Figure) -> float:
        """By how much this one is better than ``other``, in its unit; −∞ for what is not a number."""
        if not isfinite(self.value):
            return -float("inf")
        if not isfinite(other.value):
            return float("inf")
        return self.value - other.value if self.higher else other.value - self.value


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some data: its figures, of which the first one judges.

    ``loss``: mean over ``count`` counted positions, what training would minimise. ``chance``: the judging figure of
    always giving the most frequent answer, where that means anything. ``objective``: by which these were measured.
    """

    figures: tuple[Figure, ...]
    loss: float
    count: int
    chance: float | None = None
    objective: str = ""

    @property
    def judged(self) -> Figure:
        """The figure that decides which of two networks is better."""
        return self.figures[0]

    def __getitem__(self, name: str) -> float:
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(f"{name!r} was not measured; there are {', '.join(figure.name for figure in self.figures)}")

    @property
    def accuracy(self) -> float:
        """Share of right answers, for objectives that have one; ``AttributeError`` otherwise."""
        try:
            return self["accuracy"]
        except KeyError as error:
            raise AttributeError(f"accuracy: {error.args[0]}") from None

    @property
    def rank(self) -> tuple[float, float]:
        """Orders evaluations of one objective, the better one last: by the judging figure, then by the loss."""
        value = self.judged.value if self.judged.higher else -self.judged.value
        return (value if isfinite(value) else -float("inf"), -self.loss if isfinite(self.loss) else -float("inf"))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; ``from_dict`` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        return cls(**{**values, "figures": tuple(Figure(**figure) for figure in values["figures"])})


class Figures:
    """Running sums over batches, from which an ``Evaluation`` follows; sums of two parts of the data merge."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {}

    def add(self, output: Any, batch: Any, taught: Any = None) -> None:
        """Take in one batch; ``taught``: what the original network answers to it."""
        found = {"loss": torch.zeros(()), "count": torch.zeros(())}
        with torch.no_grad():
            if self.objective.labelled:
                loss, count = self.objective.losses(output, batch)
                found = {"loss": loss.detach().double() * count, "count": torch.tensor(count)}
            found |= self.objective.measure(output, batch, taught)
        for name, value in found.items():
            if name.endswith("[]"):
                self.rows.setdefault(name, []).append(value.detach().cpu())
                continue
            value = value.detach().double().cpu()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def merge(self, other: Figures) -> None:
        for name, value in other.sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        for name, parts in other.rows.items():
            self.rows.setdefault(name, []).extend(parts)

    def result(self) -> Evaluation:
        """Raises ``ObjectiveError`` where nothing was counted."""
        sums = {**self.sums, **{name: torch.cat(parts) for name, parts in self.rows.items()}}
        count = int(sums["count"]) if "count" in sums else 0
        if not count:
            raise ObjectiveError(
                f"{self.objective.name}: nothing to count: the data are empty, or every target is left out"
            )
        figures, chance = self.objective.conclude(sums)
        return Evaluation(figures, float(sums["loss"]) / count, count, chance, self.objective.name)


class Objective:
    """The base of every objective; a subclass of one's own overrides what it needs (see ``rankfold.objective``).

    ``name``: as it is printed and given to ``--objective``. ``labelled``: whether ``loss`` and figures need targets.
    """

    name = "objective"
    labelled = True

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        """The tensors of an output that count: by default each floating one, as plain numbers."""
        found = tuple(Answer(single(tensor), name=name) for name, tensor in counting_tensors(output))
        if not found:
            raise ObjectiveError(
                f"the model returned {type(output).__name__} without a floating tensor, and layers are compared by "
                "what they do to floating outputs: return logits or other numbers"
            )
        return found

    def target(self, batch: Any) -> Any:
        """The target in a batch; ``ObjectiveError`` where there is none."""
        found = labels_of(batch)
        if found is None:
            raise ObjectiveError(
                f"{self.name}: a batch holds no targets; give batches (inputs, targets) or mappings with a key labels, "
                "or use the objective 'teacher', which needs none"
            )
        return found

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        """What training minimises: the mean over the positions that count, and how many those are."""
        raise NotImplementedError(f"objective {self.name}: no loss")

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        """Sums over a batch from which ``conclude`` makes figures. A name that ends in "[]" keeps rows instead."""
        raise NotImplementedError(f"objective {self.name}: no figures")

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        """Figures from the sums, the judging one first, and the judging figure of guessing (None: unknown)."""
        raise NotImplementedError(f"objective {self.name}: no figures")

    def figures(self) -> Figures:
        """Empty sums."""
        return Figures(self)

    def divergence(self, output: Any, taught: Any, batch: Any = None) -> Tensor:
        """How far an output is from that of another network, (N,) float64, never negative; needs no targets.

        Of class scores the Kullback–Leibler divergence in nats, averaged over the positions that count; of other
        numbers the squared change over the mean squared deviation in the batch; averaged over the answers.
        """
        pairs = _paired(self.answers(output, batch), self.answers(taught, batch))
        return torch.stack([_divergence(now, then) for now, then in pairs]).mean(0)

    def distance(self, output: Any, taught: Any, batch: Any = None, temperature: float = 1.0) -> Tensor:
        """The same as something to be minimised: a scalar with gradients. Class scores are divided by ``temperature``,
        and their divergence multiplied by its square (Hinton, Vinyals, Dean 2015, section 2)."""
        pairs = _paired(self.answers(output, batch), self.answers(taught, batch))
        return torch.stack([_distance(now, then, temperature) for now, then in pairs]).mean()

    def describe(self) -> str:
        """One line for a person: what counts and what judges."""
        return self.name


def _paired(now: Sequence[Answer], then: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    if [a.values.shape for a in now] != [a.values.shape for a in then]:
        raise ObjectiveError(
            f"two networks differ in their outputs, {_shapes(now)} and {_shapes(then)}: give the network that this one "
            "was made from"
        )
    return list(zip(now, then, strict=True))


def _shapes(answers: Sequence[Answer]) -> str:
    return ", ".join("×".join(map(str, a.values.shape)) for a in answers)


def _counted_mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """(N, …) → (N,): the mean over the positions that count."""
    values = values.reshape(len(values), -1)
    if counted is None:
        return values.mean(1)
    kept = counted.reshape(len(values), -1).to(values)
    return (values * kept).sum(1) / kept.sum(1).clamp_min(1)


def _divergence(now: Answer, then: Answer) -> Tensor:
    a, b = now.values.double(), then.values.double()
    if now.classes and a.shape[-1] > 1:
        kl = F.kl_div(a.log_softmax(-1), b.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        return _counted_mean(kl, then.counted).clamp_min(0)
    energy = deviation(then)
    return _counted_mean((a - b).square().sum(-1), then.counted) / energy.clamp_min(_TINY)


def deviation(then: Answer) -> Tensor:
    """Mean squared deviation of a position from the mean over the samples; of constants or one sample their energy."""
    b = then.values.double()
    moved = (b - b.mean(0, keepdim=True)).square().sum(-1)
    energy = _counted_mean(moved, then.counted).mean()
    return energy if float(energy) > 0 else _counted_mean(b.square().sum(-1), then.counted).mean()


def _distance(now: Answer, then: Answer, temperature: float) -> Tensor:
    a, b = now.rows, then.rows.to(now.rows)
    if now.classes and a.shape[-1] > 1:
        t = temperature
        soft = F.kl_div((a / t).log_softmax(-1), (b / t).log_softmax(-1), reduction="batchmean", log_target=True)
        return soft * t * t
    energy = (b - b.mean(0)).square().sum(-1).mean() if len(b) > 1 else b.square().sum(-1).mean()
    return (a - b).square().sum(-1).mean() / energy.clamp_min(_TINY)


@dataclass(frozen=True, eq=False, kw_only=True)
class Own(Objective):
    """An objective of one's own; made by ``objective``."""

    name: str
    loss: Callable[[Any, Any], Tensor]
    figure: Callable[[Any, Any], Tensor] | None = None
    higher: bool = False
    unit: str = ""
    answer: Callable[[Any], Any] | None = None
    labelled: bool = True

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        return super().answers(output if self.answer is None else self.answer(output), batch)

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        value = self.loss(output, batch)
        if not isinstance(value, Tensor) or value.dim():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ObjectiveError(f"{self.name}: its loss must give one number as a tensor, not {given}")
        return value, size_of(batch)

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        if self.figure is None:
            return {}
        values = torch.as_tensor(self.figure(output, batch))
        if values.dim() > 1 or values.is_complex():
            raise ObjectiveError(
                f"{self.name}: its figure must give one number for each sample or their mean, not {tuple(values.shape)}"
            )
        size = size_of(batch)
        return {
            "figure": values.double().sum() if values.dim() else values.double() * size,
            "samples": torch.tensor(size),
        }

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        loss = Figure("loss", float(sums["loss"] / sums["count"]), False)
        if "figure" not in sums:
            return (loss,), None
        value = float(sums["figure"] / sums["samples"])
        return (Figure(self.name, value, self.higher, self.unit), loss), None


def objective(
    name: str,
    *,
    loss: Callable[[Any, Any], Tensor],
    figure: Callable[[Any, Any], Tensor] | None = None,
    higher: bool = False,
    unit: str = "",
    answer: Callable[[Any], Any] | None = None,
) -> Objective:
    """An objective of one's own: ``loss(output, batch)``, a scalar to be minimised, and ``figure(output, batch)``,
    which judges, one number for each sample or their mean; the loss judges where there is no figure.

    ``higher``: whether more of the figure is better. ``unit``: "fraction", "nats" or "". ``answer(output)``: the
    tensors that count where networks are compared; every floating one by default.

    >>> import torch
    >>> mine = objective("mae", loss=lambda out, batch: (out - batch[1]).abs().mean())
    >>> float(mine.losses(torch.ones(2, 1), (torch.ones(2, 3), torch.zeros(2, 1)))[0])
    1.0
    """
    return Own(name=name, loss=loss, figure=figure, higher=higher, unit=unit, answer=answer)


def main_answer(output: Any, classes: bool, axis: int = -1) -> Tensor:
    """The main tensor of an output with ``axis`` moved to the end; of single numbers (N,) as (N, 1)."""
    values = main_tensor(output)
    return single(values) if not classes or values.dim() < 2 else values.movedim(axis, -1)
