"""Training that has broken down without an error: answers no better than chance, weights gone to zero."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor, nn

from rankfold.objectives import Evaluation, Figure
from rankfold.sites import why_tensor
from rankfold.train.history import Epoch

# Frobenius norm below which a layer hands on less than a thousandth of its input: too little for batch
# normalisation (ε = 1e-5) to bring back, and for a product of such layers nothing at all.
_VANISHED = 1e-3
_DEVIATIONS = 2.0
_REMEDY = "a smaller learning_rate or weight_decay, or a longer warmup, usually helps"


def breakdown(model: nn.Module, start: Evaluation | None, epochs: Sequence[Epoch], best_epoch: int) -> str | None:
    """A sentence if the run that ended with `epochs` has broken down; None if it has not, or cannot be judged.

    `model` holds the weights of the last epoch; `start` is the validation result before it. At chance is a last
    accuracy within two standard deviations, √(p(1 − p)/count), of the share p of the most frequent label, or
    below. Vanished is a weight matrix of Frobenius norm under 1e-3 (of a product of factors: the product).
    """
    faults = list(filter(None, (_at_chance(start, epochs, best_epoch), _zero_weights(model))))
    return f"{'; '.join(faults)}. {_REMEDY.capitalize()}" if faults else None


def at_chance(figure: Figure, start: Evaluation) -> bool:
    """Whether a judging figure on the data of `start` cannot be told from guessing.

    Of an accuracy that is always answering the most frequent label, within two standard deviations; of other figures,
    such as r2, the value of guessing itself.
    """
    p = start.chance
    if p is None or figure.name != start.judged.name or not start.count:
        return False
    if figure.name == "accuracy":
        return figure.value <= p + _DEVIATIONS * sqrt(p * (1 - p) / start.count)
    return not figure.value > p if figure.higher else not figure.value < p


def vanished(model: nn.Module) -> tuple[list[str], int]:
    """Names of the layers whose weight matrix has vanished, and how many layers with a matrix there are."""
    gone, count = [], 0
    with torch.no_grad():
        for name, module in model.named_modules():
            if ".parametrizations" in f".{name}":
                continue  # factors; the layer itself gives their product
            for key in ("weight", "in_proj_weight"):
                weight = getattr(module, key, None)
                if not isinstance(weight, Tensor) or why_tensor(weight):
                    continue
                if weight.ndim > 1 and weight.is_floating_point():
                    count += 1
                    if float(torch.linalg.vector_norm(weight, dtype=torch.float64)) < _VANISHED:
                        gone.append(name or type(module).__name__)
    return gone, count


def _at_chance(start: Evaluation | None, epochs: Sequence[Epoch], best_epoch: int) -> str | None:
    if start is None or start.chance is None or not epochs:
        return None
    last = epochs[-1].validation
    if last is None or not at_chance(last.judged, start):
        return None
    best = start if best_epoch == 0 else epochs[best_epoch - 1].validation
    if best is not None and not at_chance(best.judged, start):
        said = f"the run collapsed, and the weights of epoch {best_epoch} ({best.judged.text}) are kept"
    else:
        said = "the run stays at chance"
    guess = replace(start.judged, value=start.chance).text
    guessing = f"answering the most frequent class ({guess} of {start.count})"
    if start.judged.name != "accuracy":
        guessing = f"giving the mean of the targets ({start.judged.name} {guess})"
    return (
        f"{said}: after the last epoch the validation {last.judged.name}, {last.judged.text}, cannot be told from "
        f"always {guessing}"
    )


def _zero_weights(model: nn.Module) -> str | None:
    gone, count = vanished(model)
    if not gone:
        return None
    listed = f"{', '.join(gone[:3])}{', …' if len(gone) > 3 else ''}"
    return f"the weights of {len(gone)} of {count} layers have gone to zero ({listed})"
