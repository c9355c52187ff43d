"""Samples of shapes of their own, which a model takes as one argument, a list: pictures for a detector, series of any
length. Told from a list of parts, each of which holds all samples of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

FED = "decoder_input_ids", "decoder_inputs_embeds"  # what a decoder beside an encoder reads
LABELS = ("labels", "label", "targets", "target")


class Listed(list[Any]):
    """A list whose members are the samples of a batch."""


def labels_of(batch: Any) -> Any:
    """The targets in a batch, usually a tensor; None where there are none."""
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None


def marked(batch: Any) -> Any:
    """The batch, with the lists in it whose members are its samples as ``Listed``, its targets among them.

    Lists are looked for among the arguments, in (inputs, targets) or a mapping. ``inputs`` themselves, which are
    otherwise several arguments, are one where there is a mapping of targets for each, as detectors have them.
    """
    if isinstance(batch, Mapping):
        label = next((key for key in LABELS if key in batch), None)
        targets, inputs = batch.get(label), {key: value for key, value in batch.items() if key not in LABELS}
        found: Any = _inputs(inputs, targets)
        if found is inputs:
            return batch
        return {**batch, **found, **({} if label is None else {label: _aligned(targets, found)})}
    if not isinstance(batch, tuple | list) or not batch or not isinstance(batch[0], Mapping | tuple | list):
        return batch
    targets = batch[1] if len(batch) > 1 else None
    one = _each_described(targets) and _is_listed(batch[0], targets, ())
    found = _inputs((batch[0],) if one else batch[0], targets)
    return batch if found is batch[0] else (found, *(_aligned(each, found) for each in batch[1:]))


def _inputs(inputs: Any, targets: Any) -> Any:
    """Arguments, by place or by name, with their lists of samples marked; themselves where there are none."""
    named = isinstance(inputs, Mapping)
    values = list(inputs.values() if named else inputs)
    lists = [value for value in values if isinstance(value, tuple | list)]
    if not lists:
        return inputs
    others = [value for value in values if isinstance(value, Tensor)]
    found = [Listed(value) if _is_listed(value, targets, others) else value for value in values]
    if not any(isinstance(value, Listed) for value in found):
        return inputs
    return dict(zip(inputs, found, strict=True)) if named else tuple(found)


def _is_listed(value: Any, targets: Any, others: Iterable[Tensor]) -> bool:
    """Whether the members of a list are samples. The targets count them, or else the other inputs; where there are
    neither, members whose first axes differ are, and pictures and series of several shapes."""
    if isinstance(value, Listed):
        return True
    if not isinstance(value, tuple | list) or not value or not all(isinstance(x, Tensor) and x.dim() for x in value):
        return False
    rows, count = {len(x) for x in value}, _count(targets)
    if _each_described(targets):
        return count == len(value)
    if isinstance(targets, tuple | list) and {len(x) for x in targets if isinstance(x, Tensor) and x.dim()} == rows:
        return False  # several targets beside several inputs
    if count is None:
        count = next((len(x) for x in others if x.dim()), None)
    if count is not None and (count != len(value) or rows != {count}):
        return count == len(value)
    # a tuple is rather the state of a recurrent layer
    return isinstance(value, list) and (len(rows) > 1 or _of_own_shapes(value))


def _each_described(targets: Any) -> bool:
    """Whether there is a mapping of targets for each sample, as detectors have them."""
    return isinstance(targets, tuple | list) and bool(targets) and all(isinstance(each, Mapping) for each in targets)


def _count(targets: Any) -> int | None:
    several = isinstance(targets, tuple | list) or (isinstance(targets, Tensor) and targets.dim() > 0)
    return len(targets) if several else None


def _of_own_shapes(value: list[Tensor]) -> bool:
    """Whether tensors with as many rows look like pictures, or like series with their channels first."""
    axes, several = value[0].dim(), len({x.shape for x in value}) > 1 or len(value) == 1
    if len({x.dtype for x in value}) > 1 or any(x.dim() != axes for x in value):
        return False
    return (axes == 3 and (len(value[0]) == 3 or (len(value[0]) in (1, 4) and several))) or (axes == 2 and several)


def _aligned(targets: Any, found: Any) -> Any:
    """Targets that are a list with one for each sample, marked too."""
    values = found.values() if isinstance(found, Mapping) else found
    each = next((value for value in values if isinstance(value, Listed)), ())
    return Listed(targets) if isinstance(targets, tuple | list) and len(targets) == len(each) else targets
