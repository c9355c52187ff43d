"""Accuracy and cross-entropy of a classifier on labelled data."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold.batches import forward, logits_of
from rankfold.costs import evaluating
from rankfold.train import feed
from rankfold.train.errors import TrainingError
from rankfold.train.layout import fitting_layout, laid_out


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` in [0, 1], mean cross-entropy `loss` in nats, over `count` labels.

    `chance` is the share of the most frequent label: the accuracy of always answering that one (None: not counted).
    """

    accuracy: float
    loss: float
    count: int
    chance: float | None = None


def evaluate(model: nn.Module, data: Any, batch_size: int = 128, *, role: str = "evaluation") -> Evaluation:
    """Evaluate `model`, in eval mode and without gradients, on every sample of `data`.

    `data`: an object with `inputs`, `labels` and `normalize` (`rankfold.zoo.Split`), a pair of tensors, a
    torch Dataset of (input, label), a DataLoader or list of batches. Larger batches than `batch_size` are slower on a
    CPU: tensors above 32 MB are given back to the operating system after every layer. The model may return a tensor, a
    tuple that begins with one, or something with `logits`: (B, C), or (B, T, C) with labels (B, T). Its mode is left
    as found. `role` names the data in errors. Raises TrainingError: no samples, no labels, labels that
    are not class indices of the model's outputs, weights on the meta device.
    """
    feed.check(data, role)
    materialised(model)
    correct = torch.zeros((), dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64)
    frequencies = torch.zeros(0, dtype=torch.int64)
    layout = None
    with evaluating(model):
        for batch in feed.ordered(data, batch_size):
            layout = fitting_layout(model, batch) if layout is None else layout
            logits = logits_of(forward(model, laid_out(batch, layout)))
            target = feed.labels(batch, role).to(logits.device)
            logits, target = rows(logits, target, role)
            feed.check_range(target, logits.shape[1], role)
            loss += F.cross_entropy(logits, target, reduction="sum").double().cpu()
            correct += (logits.argmax(1) == target).sum().cpu()
            seen = target.cpu().bincount(minlength=logits.shape[1])
            frequencies = frequencies + seen if len(frequencies) else seen
    count = int(frequencies.sum())
    if count == 0:
        raise TrainingError(f"{role} data: it is empty; give at least one labelled sample")
    return Evaluation(int(correct) / count, float(loss) / count, count, int(frequencies.max()) / count)


def materialised(model: nn.Module) -> None:
    """TrainingError for a model whose weights have no values."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise TrainingError(f"{name} is not materialised (on the meta device): load its weights first")


def rows(logits: Tensor, target: Tensor, role: str) -> tuple[Tensor, Tensor]:
    """Logits (B, …, C) and labels (B, …) as (rows, C), at least float32, and (rows,); or TrainingError."""
    if logits.ndim < 2 or logits.shape[:-1] != target.shape:
        raise TrainingError(
            f"{role} data: labels of shape {tuple(target.shape)} do not fit outputs of shape "
            f"{tuple(logits.shape)}; one class index belongs to each row of outputs"
        )
    logits = logits.reshape(-1, logits.shape[-1])
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), target.reshape(-1)
