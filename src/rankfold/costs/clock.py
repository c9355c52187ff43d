"""Latency, by the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from rankfold.batches import as_found, evaluating, place_of
from rankfold.costs.example import Example, with_batch
from rankfold.costs.times import Milliseconds


def latencies(
    models: Mapping[str, nn.Module],
    example: Any,
    *,
    batch: int = 1,
    rounds: int = 15,
    seconds: float = 2.0,
    quantile: float = 0.5,
) -> dict[str, float]:
    """Median milliseconds of one forward of each model, measured in turns so that a noisy machine treats all alike.

    Args:
        models: by name.
        example: one input with its batch axis, or a tuple or mapping of arguments.
        batch: samples of one forward; the example is repeated.
        rounds: at most so many, at least 1.
        seconds: about so long for each model, whichever ends first, after three rounds.
        quantile: another one than the median.

    Returns:
        Milliseconds by name: each a ``Milliseconds``, a number that knows its ``quartiles`` as well.

    Raises:
        ValueError: a batch or rounds below 1, or an input without samples.

    Buffers that a call changes are left as found. Cost: ``seconds`` for each model.

    Example:
        >>> net = nn.Linear(8, 8)
        >>> sorted(rf.latencies({"a": net, "b": net}, torch.zeros(1, 8), rounds=3, seconds=0.01))
        ['a', 'b']
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds!r}")
    example = with_batch(example, batch)
    times: dict[str, list[float]] = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(as_found(model))
            with evaluating(model):
                once(model, example)
        start = time.perf_counter()
        for turn in range(rounds):
            for name, model in models.items():
                with evaluating(model):
                    times[name].append(once(model, example))
            if turn >= 2 and time.perf_counter() - start > seconds * len(models):
                break
    return {name: Milliseconds.of([1e3 * each for each in values], quantile) for name, values in times.items()}


def once(model: nn.Module, example: Example) -> float:
    """Seconds of one forward, waiting for an accelerator where there is one."""
    place = place_of(model.modules())
    example = example.fitting(model.modules())
    wait = torch.cuda.synchronize if place is not None and place.is_cuda else (lambda: None)
    wait()
    start = time.perf_counter()
    model(*example.args, **example.kwargs)
    wait()
    return time.perf_counter() - start
