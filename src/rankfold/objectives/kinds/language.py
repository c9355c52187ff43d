"""Language models: the next token, or the masked ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.batches import labels_of
from rankfold.objectives.answer import attention_mask, decoded, indices, named_input, of_classes, unpadded
from rankfold.objectives.compare import distance, in_parts
from rankfold.objectives.evaluation import Figure, ObjectiveError
from rankfold.objectives.kinds.classification import Classification, likeliest
from rankfold.objectives.units import TOKEN


@dataclass(frozen=True)
class CausalLanguageModel(Classification):
    """The next token after each one; ``perplexity`` judges, the exponential of the mean loss of a token.

    Labels are the tokens themselves, as Hugging Face gives them; the shift by one is done here. Without labels the
    input tokens serve, less padding (``attention_mask``). ``perplexity_error`` is its standard error over the samples.
    Where the original is given (``teacher=``): ``kl``, the divergence of the next token's distribution from the
    original's in nats a token, and ``agreement``, how often both find the same token likeliest.

    Args:
        axis: of the classes in the output: 1 as in ``torch.nn.functional.cross_entropy`` (N, C, …), −1 for tokens (N,
            …, C).
        areas: pixels: mean intersection over union judges, otherwise accuracy.
        ignore: targets of this value count nowhere.
        name: of the objective.
        shift: False: labels are those of their own position, as where a data set has shifted them already, and for
            models of two halves, whose decoder is fed the labels one place later.

    Example:
        >>> rf.CausalLanguageModel().by_token
        True
    """

    axis: int = -1
    name: str = "causal-lm"
    shift: bool = True
    by_token: ClassVar[bool] = True
    diverges_in: ClassVar[str] = TOKEN

    def target(self, batch: Any) -> Tensor:
        """Position t holds token t + 1; the last position is left out, and so is padding, and what it would predict:
        with padding in front the first token."""
        if not self.shift:
            return super().target(batch)
        tokens = labels_of(batch)
        tokens = named_input(batch, "input_ids") if tokens is None else tokens
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        if tokens is None and isinstance(inputs, Tensor) and not inputs.is_floating_point():
            tokens = inputs
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 2:
            raise ObjectiveError(
                f"{self.name}: each batch must hold tokens of shape (N, length) as labels or input_ids, got "
                f"{tuple(tokens.shape) if isinstance(tokens, Tensor) else 'none'}"
            )
        tokens = indices(tokens)
        shifted = tokens.new_full(tokens.shape, self.ignore)
        shifted[:, :-1] = tokens[:, 1:]
        mask = attention_mask(batch)
        if mask is not None and mask.shape == tokens.shape:
            padding = (mask == 0).to(shifted.device)
            shifted[:, :-1].masked_fill_(padding[:, :-1] | padding[:, 1:], self.ignore)
        return shifted

    def _counted(self, values: Tensor, output: Any, batch: Any) -> Tensor | None:
        return unpadded(values, batch, decoded(output, batch))

    @property
    def compares(self) -> bool:
        """Beside what targets say: the divergence from the original's next tokens, and how often the first is the
        same, where the original is given."""
        return True

    @property
    def counts_losses(self) -> bool:
        return True

    def measure(self, output: Any, batch: Any, taught: Any = None) -> dict[str, Tensor]:
        rows, target = self._rows(output, batch)
        if target.dim() > 1:  # probabilities
            return super().measure(output, batch, taught)
        others = rows if taught is None else self._rows(taught, batch)[0].to(rows.device)
        kept = self._kept(target)
        each = [
            self._measured(mine[at], None if taught is None else other[at], right[at])
            for mine, other, right, at in in_parts(rows, others, target, kept)
        ]
        loss = torch.cat([part.pop("losses") for part in each])
        # of each sample: the sum over its tokens, and how many those are
        kept = kept.reshape(len(self.target(batch)), -1)
        sample = torch.arange(len(kept), device=rows.device).unsqueeze(1).expand_as(kept)[kept]
        total = loss.new_zeros(len(kept)).index_add(0, sample, loss)
        tokens = kept.sum(1).double()
        found = {name: torch.stack([part[name] for part in each]).sum(0) for name in each[0]}
        return found | {
            "loss": loss.sum(), "count": tokens.sum(), "samples": (tokens > 0).sum(),
            "loss loss": total.square().sum(), "loss tokens": (total * tokens).sum(), "tokens tokens": tokens @ tokens,
        }  # fmt: skip

    @staticmethod
    def _measured(scores: Tensor, other: Tensor | None, target: Tensor) -> dict[str, Tensor]:
        """Of some positions, by the scores there and those of the original."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        given = likeliest(scores)
        found = {
            "losses": F.cross_entropy(scores, target, reduction="none").double(), "right": (given == target).sum(),
        }  # fmt: skip
        if other is not None:
            other = other.to(scores)
            kl, rows = distance(of_classes(scores, None), of_classes(other, None), temperature=1.0, scale=None)
            found |= {"kl": kl.double().clamp_min(0) * rows, "same": (given == other.argmax(-1)).sum()}
        return found

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        count, loss = float(sums["count"]), float(sums["loss"] / sums["count"])
        perplexity = math.exp(loss) if loss < 700 else math.inf
        accuracy = Figure("accuracy", float(sums["right"]) / count, True, "fraction")
        figures = [Figure("perplexity", perplexity, False), accuracy]
        if float(sums.get("samples", 0)) > 1 and math.isfinite(perplexity):
            figures.append(Figure("perplexity_error", perplexity * _standard_error(sums, loss), False))
        if "kl" in sums:
            figures.append(Figure("kl", float(sums["kl"]) / count, False, "nats"))
            figures.append(Figure("agreement", float(sums["same"]) / count, True, "fraction"))
        return tuple(figures), None


def _standard_error(sums: Mapping[str, Tensor], mean: float) -> float:
    """Of the mean loss of a token, over samples of any number of tokens: that of a ratio of two sums."""
    samples, count = float(sums["samples"]), float(sums["count"])
    spread = float(sums["loss loss"] - 2 * mean * sums["loss tokens"] + mean**2 * sums["tokens tokens"])
    return math.sqrt(max(spread, 0.0) * samples / (samples - 1)) / count


@dataclass(frozen=True)
class MaskedLanguageModel(CausalLanguageModel):
    """The tokens that were masked: labels are theirs, and −100 everywhere else; nothing is shifted.

    Args:
        axis: of the classes in the output: 1 as in ``torch.nn.functional.cross_entropy`` (N, C, …), −1 for tokens (N,
            …, C).
        areas: pixels: mean intersection over union judges, otherwise accuracy.
        ignore: targets of this value count nowhere.
        name: of the objective.
        shift: False.

    Example:
        >>> rf.MaskedLanguageModel().shift
        False
    """

    name: str = "masked-lm"
    shift: bool = False
    remedy: ClassVar[str] = (
        "a text is read as it is, so mask tokens yourself (transformers.DataCollatorForLanguageModeling does) and give "
        "batches with the keys input_ids and labels"
    )
