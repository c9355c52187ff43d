"""The exact frontier of a knapsack: brute force on small ones, whatever is made at once, and memory that is bounded."""

import tracemalloc
from itertools import product

import numpy as np
import pytest

from rankfold.linalg import frontier as module
from rankfold.linalg.frontier import frontier


def _groups(rng: np.random.Generator, groups: int, most: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    sizes = rng.integers(1, most, groups)
    costs = [rng.integers(0, 12, size).astype(float) for size in sizes]
    return [rng.integers(0, 15, size).astype(float) for size in sizes], costs


@pytest.mark.parametrize("at_once", [1, 5, 64, 1 << 18])
@pytest.mark.parametrize("seed", range(12))
def test_the_least_loss_within_the_limit(monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    losses, costs = _groups(rng, 4, 7)
    limit = float(rng.uniform(5, 30))

    def total(values: list[np.ndarray], picked: tuple[int, ...]) -> float:
        return float(sum(value[index] for value, index in zip(values, picked, strict=True)))

    fitting = [each for each in product(*(range(len(x)) for x in losses)) if total(costs, each) <= limit]
    found = frontier(losses, costs, limit, 0.5, 1e9)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert total(costs, tuple(found)) <= limit
    assert total(losses, tuple(found)) == min(total(losses, each) for each in fitting)


def test_memory_does_not_grow_with_the_number_of_options() -> None:
    rng = np.random.default_rng(0)
    losses = [np.cumsum(rng.random(400))[::-1].copy() for _ in range(12)]
    costs = [np.arange(1.0, 401) * float(rng.integers(1000, 3000)) for _ in range(12)]
    tracemalloc.start()
    frontier(losses, costs, sum(float(cost[200]) for cost in costs), 1 / 4000, 30.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64e6  # all sums of the last group that is followed are half a gigabyte
