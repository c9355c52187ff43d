"""An objective: what the outputs of a model and its targets mean. Nothing else in rankfold looks at either.

An objective answers four questions about a batch: which tensors of the output count (``answers``), how far they moved
from those of another network (``divergence``, ``distances``), what training minimises (``losses``), and how good the
network is (``figures``). The first two need no targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankfold.batches import labels_of, size_of
from rankfold.objectives import compare
from rankfold.objectives.answer import Answer, counting_tensors, decoded, single, unpadded
from rankfold.objectives.evaluation import Figure, Figures, ObjectiveError
from rankfold.objectives.units import CHANGE

Scales = tuple[float, ...]


class Objective:
    """What outputs and targets mean. The base of every objective; a subclass overrides what it needs.

    Attributes:
        name: as it is printed and given to ``--objective``.
        labelled: whether losses and figures need targets; where not, they compare with the original network.
        by_token: whether the answers are scores of tokens, of which the softmax is a distribution: what is lost is then
            forecast in nats for a token.
        diverges_in: the unit of ``divergence``, a key of ``rankfold.objectives.units``.
        smooths: whether ``losses`` can smooth its targets (``label_smoothing``), as those of classes.
        remedy: what to do where a batch holds no targets.

    Example:
        >>> isinstance(rf.Regression(), rf.Objective), rf.Teacher().labelled
        (True, False)
    """

    name = "objective"
    labelled = True
    by_token: ClassVar[bool] = False
    diverges_in: ClassVar[str] = CHANGE
    smooths: ClassVar[bool] = True
    remedy: ClassVar[str] = "give batches (inputs, targets), or mappings with a key labels"

    @property
    def compares(self) -> bool:
        """Whether figures compare with the original network where it is given; by default where there are no labels."""
        return not self.labelled

    @property
    def counts_losses(self) -> bool:
        """Whether ``measure`` gives ``loss`` and ``count`` too, so that losses need not be computed twice."""
        return False

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        """The tensors of an output that count: by default each floating one, as plain numbers."""
        found = tuple(
            Answer(single(tensor.masked_fill(gone, 0)), counted=counted, name=name, masked=single(gone))
            for name, tensor in self._counting(output)
            for gone, counted in ((tensor.isinf(), unpadded(tensor, batch, decoded(output, batch))),)
        )
        if not found:
            raise ObjectiveError(
                f"the model returned a {type(output).__name__} without floating-point numbers, by which layers "
                "are compared: let it return logits or other numbers"
            )
        return found

    def _counting(self, output: Any) -> list[tuple[str, Tensor]]:
        """The tensors of an output that count, with their places in it: by default each floating one."""
        return counting_tensors(output)

    def target(self, batch: Any) -> Any:
        """The target in a batch; ``ObjectiveError`` where there is none."""
        found = labels_of(batch)
        if found is None:
            raise ObjectiveError(
                f"{self.name}: a batch holds no targets: {self.remedy}; or use the objective 'teacher', which needs "
                "none"
            )
        return found

    def check(self, output: Any, targets: Tensor) -> None:
        """``ObjectiveError`` for targets (N, …) of a whole data set that no output like this one (n, …) can meet."""

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        """What training minimises: the mean over the positions that count, and how many those are."""
        raise NotImplementedError(f"objective {self.name}: it defines no loss")

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        """Sums over a batch from which ``conclude`` makes figures. A name that ends in "[]" keeps rows instead."""
        raise NotImplementedError(f"objective {self.name}: it defines no figures")

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        """Figures from the sums, the judging one first, and the judging figure of guessing (None: unknown)."""
        raise NotImplementedError(f"objective {self.name}: it defines no figures")

    def mean_loss(self, sums: Mapping[str, Tensor]) -> float:
        """The loss over everything that the sums have seen."""
        return float(sums["loss"] / sums["count"])

    def figures(self) -> Figures:
        """Empty sums."""
        return Figures(self)

    def divergence(self, output: Any, taught: Any, batch: Any = None) -> Tensor:
        """How far an output is from that of another network, (N,) float64, never negative; needs no targets.

        Of class scores the Kullback–Leibler divergence in nats, averaged over the positions that count; of other
        numbers the squared change over the mean squared deviation in the batch; averaged over the answers, of which
        one without a row for each sample, as the states of an LSTM (layers, N, …), has its mean in all of them.
        """
        pairs = compare.paired(self.answers(output, batch), self.answers(taught, batch))
        found = [compare.divergences(now, then) for now, then in pairs]
        if len({len(each) for each in found}) > 1:
            size = len(found[0]) if batch is None else size_of(batch)
            found = [each if len(each) == size else each.mean().expand(size) for each in found]
        return torch.stack(found).mean(0)

    def scales(self, taught: Any, batch: Any = None) -> Scales:
        """What squared changes of each answer are divided by: taken once, so that every batch is measured alike."""
        return tuple(float(compare.deviation(answer)) for answer in self.answers(taught, batch))

    def distances(
        self, output: Any, taught: Any, batch: Any = None, temperature: float = 1.0, scales: Scales | None = None
    ) -> tuple[Tensor, int]:
        """The divergence as something to be minimised: a mean with gradients, and over how many positions.

        Class scores are divided by ``temperature``, and their divergence multiplied by its square (Hinton, Vinyals,
        Dean 2015, section 2). ``scales`` as from ``scales``; by default those of this batch.
        """
        pairs = compare.paired(self.answers(output, batch), self.answers(taught, batch))
        each = scales or (None,) * len(pairs)
        found = [compare.distance(a, b, temperature, scale) for (a, b), scale in zip(pairs, each, strict=True)]
        return torch.stack([value for value, _ in found]).mean(), found[0][1]

    def distance(self, output: Any, taught: Any, batch: Any = None, temperature: float = 1.0) -> Tensor:
        """``distances`` without the number of positions."""
        return self.distances(output, taught, batch, temperature)[0]

    def __str__(self) -> str:
        return self.name
