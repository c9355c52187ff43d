"""How many threads NumPy's linear algebra takes: one for small matrices, where several only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from threading import Lock

from threadpoolctl import ThreadpoolController

from rankfold.recover.measurements.operators import Entries, Mask, Operator

ALONE = 2**20  # numbers in the largest matrix that is multiplied
_lock, _limit, _inside = Lock(), ExitStack(), 0


@contextmanager
def threads_for(elements: int) -> Iterator[None]:
    """One thread inside it where matrices have at most ``ALONE`` elements; for larger ones as many as there were.

    On a machine that is busy otherwise the threads of a small product cost a hundred times the product: 31 s instead of
    0.03 s for twenty sweeps of alternating minimisation, 120 × 90, two cores with three processes. The limit is that of
    the whole process: the first to enter sets it, the last to leave takes it back.
    """
    global _inside
    if elements > ALONE:
        yield
        return
    with _lock:
        if not _inside:
            _limit.enter_context(_libraries().limit(limits=1, user_api="blas"))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limit.close()


def elements(operator: Operator, *, thin: bool = True) -> int:
    """Of the largest matrix that is multiplied: of thin factors where single entries are known, else of the matrix
    itself, or of all that measure it."""
    m, n = operator.shape
    if isinstance(operator, Entries) and thin:
        return 64 * max(m, n)
    return m * n if isinstance(operator, (Mask, Entries)) else m * n * operator.count


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()  # looking for them takes 5 ms
