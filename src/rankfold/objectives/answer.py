"""What a model's output says: the tensors in it that count, which of their axes are classes, which positions count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.batches import FED, labels_of
from rankfold.linalg.brief import brief

IGNORE = -100  # a label that counts nowhere

# what a model hands on besides its answer: caches, states of its layers, a loss it computed itself
INTERNAL = (
    "past_key_values", "cache", "loss", "aux_loss", "z_loss", "router_logits", "cache_params", "mems", "rope_deltas",
)  # fmt: skip
_LITTLE = 100.0  # nats below the best class
_STATES = ("hidden_state", "hidden_states", "attentions", "pooler_output")


@dataclass(frozen=True, eq=False)
class Answer:
    """One tensor of a model's output, ``values`` (N, …, C) with samples first.

    ``classes``: along the last axis lie the scores of classes, of which only differences count. ``counted`` (N, …):
    which positions count, as booleans; None for all of them. ``name``: where in the output it stands. ``masked``, as
    ``values``: which numbers the network gave as infinities, as it says that there is none; they are zeros here, and of
    classes scores that no distribution notices.
    """

    values: Tensor
    classes: bool = False
    counted: Tensor | None = None
    name: str = ""
    masked: Tensor | None = None

    __repr__ = brief

    @property
    def rows(self) -> Tensor:
        """The positions that count as rows (R, C), in float32 at least."""
        wide = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        return wide.reshape(-1, wide.shape[-1]) if self.counted is None else wide[self.counted]

    @property
    def centred(self) -> Tensor:
        """``values`` less what does not count: their mean over the classes, and positions that are left out."""
        wide = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        if self.classes and wide.shape[-1] > 1:
            wide = self._less_mean(wide)
        return wide if self.counted is None else wide * self.counted.unsqueeze(-1)

    def _less_mean(self, wide: Tensor) -> Tensor:
        if self.masked is None:
            return wide - wide.mean(-1, keepdim=True)
        there = ~self.masked
        mean = (wide * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp_min(1)
        return (wide - mean) * there

    @property
    def places(self) -> Tensor:
        """``centred`` as rows (R, C), one for each place: of maps of numbers (N, C, …) the second axis are channels."""
        wide = self.centred
        wide = wide.movedim(1, -1) if wide.dim() > 3 and not self.classes else wide
        return wide.reshape(-1, wide.shape[-1])


def indices(target: Any) -> Any:
    """Whole numbers as int64, in which a label that counts nowhere is none of the others: in uint8 −100 is 156."""
    whole = isinstance(target, Tensor) and not (target.is_floating_point() or target.is_complex())
    return target.long() if whole and target.dtype != torch.bool else target


def of_classes(scores: Tensor, counted: Tensor | None) -> Answer:
    """The answer of scores (…, C), in which classes that the network rules out (−inf) have so little that no
    distribution notices, and as much in all networks: differences of infinities are no numbers."""
    if scores.is_meta or not bool((gone := scores == -torch.inf).any()):
        return Answer(scores, True, counted)
    top = scores.detach().amax(-1, keepdim=True).clamp_max(0).nan_to_num(neginf=0.0)
    return Answer(torch.where(gone, (top / _LITTLE).floor() * _LITTLE - _LITTLE, scores), True, counted, masked=gone)


def filled_up(values: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Two tables (…, C), the narrower one with zeros behind: the last axis of an answer may be a length, as that of a
    recording or of a text, and differ from batch to batch."""
    length = max(values.shape[-1], others.shape[-1])
    return F.pad(values, (0, length - values.shape[-1])), F.pad(others, (0, length - others.shape[-1]))


def main_tensor(output: Any) -> Tensor:
    """The tensor that a loss is taken of: the output itself, its ``logits``, or the first tensor in it.

    Raises ``TypeError`` for an output that holds none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    for _, tensor in counting_tensors(output):
        return tensor
    raise TypeError(
        f"the model returned a {type(output).__name__}: a tensor, something with logits, or a tuple, mapping or "
        "dataclass that holds a tensor of real numbers was expected"
    )


def main_alone(output: Any) -> list[tuple[str, Tensor]]:
    """``main_tensor`` with its place, as ``counting_tensors`` names it; empty where that finds none."""
    every = counting_tensors(output)
    return [(name, tensor) for name, tensor in every if tensor is main_tensor(output)] or every[:1]


def counting_tensors(output: Any) -> list[tuple[str, Tensor]]:
    """Every floating tensor of an output with its place, without caches and states of inner layers.

    Where a mapping holds nothing but states, such as the output of an encoder, its last state counts. A list with a
    mapping for each sample, as detectors give, counts as one mapping with the rows of all.
    """
    every = [(name, tensor) for name, tensor in named_tensors(_joined(output)) if tensor.is_floating_point()]
    found = [(name, tensor) for name, tensor in every if tensor.dim()] or every
    outer = [(name, tensor) for name, tensor in found if not name.split(".")[0].endswith(_STATES)]
    if outer or not found:
        return outer
    last = [(name, tensor) for name, tensor in found if name == "last_hidden_state"]
    return last or found


def _joined(output: Any) -> Any:
    """The mappings of a list as one, where rows of all of them make one tensor; other outputs as they are."""
    if not isinstance(output, list | tuple) or not output or not all(isinstance(each, Mapping) for each in output):
        return output
    together: dict[Any, Tensor] = {}
    for key in output[0]:
        parts = [each.get(key) for each in output]
        shapes = {part.shape[1:] if isinstance(part, Tensor) and part.dim() else None for part in parts}
        if len(shapes) > 1 or None in shapes or any(each.keys() != output[0].keys() for each in output):
            return output
        together[key] = torch.cat(parts)
    return together


def named_tensors(output: Any) -> list[tuple[str, Tensor]]:
    """Every tensor of an output with its place, in order, but for caches and losses that it hands on."""
    return list(_walk("", output))


def _walk(place: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
        return
    members: Any = ()
    if isinstance(value, Mapping):
        members = value.items()
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        members = zip(getattr(value, "_fields", range(len(value))), value)  # a named tuple's own names
    elif hasattr(value, "__dataclass_fields__"):
        members = ((name, getattr(value, name)) for name in value.__dataclass_fields__)
    elif isinstance(getattr(value, "logits", None), Tensor):
        members = [("logits", value.logits)]
    for name, member in members:
        if place or str(name) not in INTERNAL:
            yield from _walk(f"{place}.{name}" if place else str(name), member)


def single(values: Tensor) -> Tensor:
    """(N,) numbers as (N, 1), one number as (1, 1); everything else as it is."""
    return values.reshape(-1, 1) if values.dim() < 2 else values


def named_input(batch: Any, name: str) -> Tensor | None:
    """The input called ``name`` of a batch that is a mapping, or a pair of a mapping and targets; None without."""
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    found = inputs.get(name) if isinstance(inputs, Mapping) else None
    return found if isinstance(found, Tensor) else None


def attention_mask(batch: Any) -> Tensor | None:
    """Which tokens of a batch are no padding (N, length), where it says."""
    return named_input(batch, "attention_mask")


def decoded(output: Any, batch: Any) -> bool:
    """Whether an output is of a decoder beside an encoder, as its type or what the batch feeds it says."""
    return type(output).__name__.startswith("Seq2Seq") or _fed(batch)


def _fed(batch: Any) -> bool:
    return any(named_input(batch, name) is not None for name in FED)


def unpadded(values: Tensor, batch: Any, decoder: bool | None = None) -> Tensor | None:
    """(N, length), which tokens of ``values`` (N, length, C) are no padding; None where the batch does not say.

    ``decoder``: whether they are those of a decoder beside an encoder, whose mask is its own, or that of its labels;
    None: it is not known, so that beside a decoder nothing is.
    """
    if decoder is None and _fed(batch):
        return None
    mask = _of_decoder(batch) if decoder else attention_mask(batch)
    if mask is None or values.dim() != 3 or mask.shape != values.shape[:2]:
        return None
    return mask.to(values.device).bool()


def _of_decoder(batch: Any) -> Tensor | None:
    """Which tokens of a decoder are no padding; of one that is fed nothing of its own, those that the encoder reads."""
    mask, labels = named_input(batch, "decoder_attention_mask"), labels_of(batch)
    if mask is not None:
        return mask
    if isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point():
        return indices(labels) != IGNORE
    return None if _fed(batch) else attention_mask(batch)
