"""Randomness as a function of (seed, epoch): a resumed run draws what the uninterrupted one would have."""

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import nn

from rankfold.batches import place_of


@contextmanager
def seeded(seed: int, device: torch.device, generators: Iterable[torch.Generator]) -> Iterator[None]:
    """Set every source of randomness of a model or data set to `seed`, and restore its state afterwards.

    Those are torch's default generators (CPU and `device`), Python's, numpy's global one, and `generators`.
    """
    kept = [(generator, generator.get_state()) for generator in generators]
    python, old_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002, what transforms draw from
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            for generator, _ in kept:
                generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old_numpy)  # noqa: NPY002
            for generator, state in kept:
                generator.set_state(state)


def same_draws(model: nn.Module, number: int) -> AbstractContextManager[None]:
    """Within the block a network draws for the batch of this number what another one drew: those that draw while they
    compute, as variational and masked autoencoders do, would differ from themselves."""
    place = place_of(model.modules())
    return seeded(number, torch.device("cpu") if place is None else place.device, ())
