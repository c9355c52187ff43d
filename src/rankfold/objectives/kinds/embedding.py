"""Vectors that stand for inputs: what counts is their direction, and who is nearest to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.batches import size_of
from rankfold.objectives.answer import Answer, decoded, main_tensor, unpadded
from rankfold.objectives.base import Objective, Scales
from rankfold.objectives.evaluation import Figure, ObjectiveError
from rankfold.objectives.units import COSINE


@dataclass(frozen=True)
class Embedding(Objective):
    """One vector for each sample: the output itself, or the mean over its tokens that ``attention_mask`` counts.

    No targets. ``cosine`` with the original's vector judges; ``neighbours`` is the share of samples whose nearest other
    sample, among the first 4096, is the same as before.

    Args:
        name: of the objective.
        labelled: False.

    Example:
        >>> x = torch.randn(8, 4)
        >>> rf.evaluate(nn.Identity(), x, objective=rf.Embedding(), teacher=nn.Identity()).judged.name
        'cosine'
    """

    diverges_in: ClassVar[str] = COSINE
    name: str = "embedding"
    labelled: bool = False

    def answers(self, output: Any, batch: Any = None) -> tuple[Answer, ...]:
        return (Answer(F.normalize(self.vectors(output, batch), dim=-1)),)

    def vectors(self, output: Any, batch: Any = None) -> Tensor:
        """(N, d), not normalised."""
        values = main_tensor(output)
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if values.dim() == 2:
            return values
        if values.dim() != 3:
            raise ObjectiveError(
                f"{self.name}: the model must give outputs of shape (N, d) or (N, tokens, d), and gives "
                f"{tuple(values.shape)}"
            )
        mask = unpadded(values, batch, decoded(output, batch))
        if mask is None:
            return values.mean(1)
        kept = mask.to(values).unsqueeze(-1)
        return (values * kept).sum(1) / kept.sum(1).clamp_min(1)

    def target(self, batch: Any) -> None:
        return None

    def losses(self, output: Any, batch: Any, smoothing: float = 0.0) -> tuple[Tensor, int]:
        raise ObjectiveError("embedding: without targets, training needs the original network: give it as teacher=")

    def divergence(self, output: Any, taught: Any, batch: Any = None) -> Tensor:
        now, then = self.vectors(output, batch).double(), self.vectors(taught, batch).double()
        return (1 - F.cosine_similarity(now, then, dim=-1)).clamp_min(0)

    def scales(self, taught: Any, batch: Any = None) -> Scales:
        return ()

    def distances(
        self, output: Any, taught: Any, batch: Any = None, temperature: float = 1.0, scales: Scales | None = None
    ) -> tuple[Tensor, int]:
        now, then = self.vectors(output, batch), self.vectors(taught, batch)
        return (1 - F.cosine_similarity(now, then.to(now), dim=-1)).clamp_min(0).mean(), len(now)

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        if taught is None:
            raise ObjectiveError(
                f"{self.name}: outputs are compared with those of the original network: give it as teacher="
            )
        now, then = (F.normalize(self.vectors(x, batch).double(), dim=-1) for x in (output, taught))
        cosine = (now * then).sum(-1)
        return {
            "count": torch.tensor(size_of(batch)), "loss": (1 - cosine).clamp_min(0).sum(), "cosine": cosine.sum(),
            "now[]": now.float(), "then[]": then.float(),
        }  # fmt: skip

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        cosine = Figure("cosine", float(sums["cosine"] / sums["count"]))
        if "now[]" not in sums or len(sums["now[]"]) < 3:
            return (cosine,), None
        kept = float((_nearest(sums["now[]"]) == _nearest(sums["then[]"])).double().mean())
        return (cosine, Figure("neighbours", kept, True, "fraction")), None


def _nearest(vectors: Tensor) -> Tensor:
    """Index of the nearest other vector of each, a block at a time: no N × N matrix is held."""
    found = []
    for start in range(0, len(vectors), 1024):
        scores = vectors[start : start + 1024] @ vectors.T
        rows = torch.arange(len(scores))
        scores[rows, rows + start] = -torch.inf
        found.append(scores.argmax(-1))
    return torch.cat(found)
