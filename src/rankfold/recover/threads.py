"""How many threads NumPy's linear algebra takes: one for small matrices, where several only wait for each other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

from threadpoolctl import ThreadpoolController

ALONE = 2**20  # numbers in the largest matrix that is multiplied


def threads_for(elements: int) -> AbstractContextManager:
    """One thread inside it where matrices have at most ``ALONE`` elements; for larger ones as many as there were.

    On a machine that is busy otherwise the threads of a small product cost a hundred times the product: 31 s instead of
    0.03 s for twenty sweeps of alternating minimisation, 120 × 90, two cores with three processes.
    """
    return _libraries().limit(limits=1, user_api="blas") if elements <= ALONE else nullcontext()


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looking for them takes 5 ms
