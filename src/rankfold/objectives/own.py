"""An objective of one's own, from a loss and a figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rankfold.batches import labels_of, size_of, tensors_in
from rankfold.objectives.answer import Answer
from rankfold.objectives.base import Objective
from rankfold.objectives.evaluation import Figure, ObjectiveError


@dataclass(frozen=True, eq=False, kw_only=True)
class Own(Objective):
    """An objective of one's own; made by ``objective``."""

    smooths: ClassVar[bool] = False
    name: str
    loss: Callable[[Any, Any], Tensor]
    figure: Callable[[Any, Any], Any] | None = None
    higher: bool = False
    unit: str = ""
    answer: Callable[[Any], Any] | None = None

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        if self.answer is not None:
            with self._running("answer", output, batch):
                output = self.answer(output)
        return super().answers(output, batch)

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        with self._running("loss", output, batch):
            value = self.loss(output, batch)
        if not isinstance(value, Tensor) or value.dim():
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ObjectiveError(f"{self.name}: its loss must give one number as a tensor, not {given}")
        return value, size_of(batch)

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        if self.figure is None:
            return {}
        with self._running("figure", output, batch):
            given = self.figure(output, batch)
        try:
            values = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ObjectiveError(f"{self.name}: its figure is not a number ({error})") from error
        if values.dim() > 1 or values.is_complex():
            raise ObjectiveError(
                f"{self.name}: its figure must give one number for each sample or their mean, not {tuple(values.shape)}"
            )
        size = size_of(batch)
        if values.dim() and len(values) != size:
            raise ObjectiveError(f"{self.name}: its figure gives {len(values)} numbers for a batch of {size} samples")
        return {
            "figure": values.double().sum() if values.dim() else values.double() * size,
            "samples": torch.tensor(size),
        }

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        if "figure" not in sums:
            return (Figure(self.name, self.mean_loss(sums), False, self.unit),), None
        return (Figure(self.name, float(sums["figure"] / sums["samples"]), self.higher, self.unit),), None

    @contextmanager
    def _running(self, part: str, output: Any, batch: Any) -> Iterator[None]:
        """What a function of somebody's raises, as an ``ObjectiveError`` that says what it was given."""
        try:
            yield
        except ObjectiveError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ObjectiveError(
                f"{self.name}: its {part} failed for targets of shape {_shapes(labels_of(batch))} and outputs of shape "
                f"{_shapes(output)}: {reason}"
            ) from error


def _shapes(value: Any) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(value)) or f"none ({type(value).__name__})"


def objective(
    name: str,
    *,
    loss: Callable[[Any, Any], Tensor],
    figure: Callable[[Any, Any], Any] | None = None,
    higher: bool = False,
    unit: str = "",
    answer: Callable[[Any], Any] | None = None,
) -> Objective:
    """An objective of one's own, from a loss and a figure.

    Args:
        name: of the objective, and of its figure, which cannot be called loss: that is what training minimises.
        loss: ``loss(output, batch)``, a scalar to be minimised. Tensors of ``batch`` are where the data have them: move
            them to the output's device.
        figure: ``figure(output, batch)``, which judges: one number for each sample, or their mean. None: the loss
            judges.
        higher: whether more of it is better.
        unit: "fraction", "nats" or "".
        answer: ``answer(output)``, the tensors that count where networks are compared; every floating one by default.

    Returns:
        An ``Objective``; ``rankfold.objectives.register`` makes it known to ``--objective``.

    Raises:
        ObjectiveError: a figure called loss; when it is used: a loss or figure that fails, or is no number.

    Example:
        >>> mine = rf.objective("mae", loss=lambda out, batch: (out - batch[1]).abs().mean())
        >>> float(mine.losses(torch.ones(2, 1), (torch.ones(2, 3), torch.zeros(2, 1)))[0])
        1.0
    """
    if figure is not None and name == "loss":
        raise ObjectiveError(
            "objective 'loss': its figure would have the name of what training minimises: give it another name, as "
            "'error', or no figure where the loss is to judge"
        )
    return Own(name=name, loss=loss, figure=figure, higher=higher, unit=unit, answer=answer)
