"""A batch of one sample, as data loaders leave it at the end of an epoch, before batch normalisation."""

from typing import Any

from rankfold.batches import size_of


def without_variance(error: ValueError, batch: Any) -> bool:
    """Whether torch refused this batch because one sample has no variance in a channel (torch says so by text alone).

    One image is enough for `BatchNorm2d`, whose channels have many values; one row of numbers is not.
    """
    return size_of(batch) == 1 and "Expected more than 1 value per channel" in str(error)
