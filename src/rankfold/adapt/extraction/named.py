"""The tensors of a checkpoint by the names that a model has for them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from rankfold.run.disk.tensors import Checkpoint, is_weights
from rankfold.sites import unwrap


class Named:
    """A checkpoint read by the names of ``model``, whatever the file calls them. ``keys``: of each name that it has.

    Files of a model without its head, or with one, differ by one word in front of every name: it is told once, from all
    names of the model. Raises ``ValueError`` where two words fit as many of them, as those of two copies of a model in
    one file do.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self.checkpoint, self.title = checkpoint, checkpoint.title
        self.keys = _keys(list(unwrap(model).state_dict(keep_vars=True)), checkpoint)

    def __contains__(self, name: str) -> bool:
        return name in self.keys

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(self.keys[name])

    def read(self, name: str) -> Tensor:
        return self.checkpoint.read(self.keys[name])

    def weight(self, name: str) -> Tensor:
        """Finite and not quantised; ``ValueError`` in one line with its name otherwise."""
        tensor = self.read(name)
        if not is_weights(tensor.dtype):
            raise ValueError(quantised(self.checkpoint, self.keys[name]))
        return check_finite(self.checkpoint, self.keys[name], tensor)

    def finite(self, name: str) -> Tensor:
        """A tensor of any type, such as a buffer; ``ValueError`` as of ``weight`` where it is not finite."""
        return check_finite(self.checkpoint, self.keys[name], self.read(name))


def quantised(which: Checkpoint, key: str) -> str:
    """What is said of a checkpoint with this tensor."""
    return (
        f"{which.title} is quantised ({key}), and its rounding would be taken for an update: give the "
        "checkpoint from before quantisation"
    )


def check_finite(which: Checkpoint, key: str, tensor: Tensor) -> Tensor:
    """``tensor``; ``ValueError`` with its name in the checkpoint where it is not finite."""
    if not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise ValueError(
            f"{key} in {which.title}: {count} of {tensor.numel()} values are NaN or infinite: give a checkpoint "
            "without them"
        )
    return tensor


def _keys(names: list[str], checkpoint: Checkpoint) -> dict[str, str]:
    found = list(_ways(names, checkpoint))
    most = max(len(keys) for _, keys in found)
    best = [(how, keys) for how, keys in found if len(keys) == most]
    how, keys = best[0]
    other = next((other for other, others in best[1:] if how and others != keys), None)
    if other is not None:
        raise ValueError(
            f"the names in {checkpoint.title} are those of the model with {how}, and as many are with {other}: give a "
            "checkpoint that holds the tensors of one of the two alone, or calls them as the model does"
        )
    return keys


def _ways(names: list[str], checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, str]]]:
    """The keys of the names that the checkpoint has: as they are, with a word in front of each, without the first of
    their own; each with how it is said, the first, which is always meant where it fits as many, with nothing."""
    yield "", {name: name for name in names if name in checkpoint}
    for head in _heads(checkpoint.names):
        yield f"{head!r} in front", {name: head + name for name in names if head + name in checkpoint}
    for head in _heads(names):
        bare = {name: name.removeprefix(head) for name in names if name.startswith(head)}
        yield f"{head!r} left off", {name: key for name, key in bare.items() if key in checkpoint}


def _heads(names: list[str]) -> list[str]:
    """The first word of each name, in the order of the names."""
    return list(dict.fromkeys(f"{name.partition('.')[0]}." for name in names))
