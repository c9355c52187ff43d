"""Language models: the next token, or the masked ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rankfold.batches import labels_of
from rankfold.objectives.answer import attention_mask, named_input, unpadded
from rankfold.objectives.classification import Classification
from rankfold.objectives.evaluation import Figure, ObjectiveError


@dataclass(frozen=True)
class CausalLanguageModel(Classification):
    """The next token after each one. Labels are the tokens themselves, as Hugging Face gives them; the shift by one is
    done here. Without labels the input tokens serve, less padding (``attention_mask``).

    ``shift`` False: labels are those of their own position, as where a data set has shifted them already, and for
    models of two halves, whose decoder is fed the labels one place later.
    """

    axis: int = -1
    name: str = "causal-lm"
    shift: bool = True
    by_token: ClassVar[bool] = True

    def target(self, batch: Any) -> Tensor:
        """Position t holds token t + 1; the last position is left out."""
        if not self.shift:
            return super().target(batch)
        tokens = labels_of(batch)
        if tokens is None and named_input(batch, "input_ids") is not None:
            tokens, mask = named_input(batch, "input_ids"), attention_mask(batch)
            if tokens is not None and mask is not None and mask.shape == tokens.shape:
                tokens = tokens.masked_fill(mask == 0, self.ignore)
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        if tokens is None and isinstance(inputs, Tensor) and not inputs.is_floating_point():
            tokens = inputs
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dim() != 2:
            raise ObjectiveError(
                f"{self.name}: tokens (N, length) as labels or input_ids were expected in each batch, got "
                f"{tuple(tokens.shape) if isinstance(tokens, Tensor) else 'none'}"
            )
        shifted = tokens.new_full(tokens.shape, self.ignore)
        shifted[:, :-1] = tokens[:, 1:]
        return shifted

    def _counted(self, values: Tensor, batch: Any) -> Tensor | None:
        return unpadded(values, batch)

    def conclude(self, sums: Mapping[str, Tensor]) -> tuple[tuple[Figure, ...], float | None]:
        loss = float(sums["loss"] / sums["count"])
        perplexity = math.exp(loss) if loss < 700 else math.inf
        accuracy = float(sums["right"] / sums["count"])
        return (Figure("perplexity", perplexity, False), Figure("accuracy", accuracy, True, "fraction")), None


@dataclass(frozen=True)
class MaskedLanguageModel(CausalLanguageModel):
    """The tokens that were masked: labels are theirs, and −100 everywhere else; nothing is shifted."""

    name: str = "masked-lm"
    shift: bool = False
