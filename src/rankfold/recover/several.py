"""The same work for several candidates, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import joblib

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]


def each(
    work: Callable[..., Result],
    given: Sequence[tuple],
    jobs: int,
    progress: Progress | None,
    words: Callable[[int], str],
    end: str,
) -> list[Result]:
    """``work(*arguments)`` for every tuple of ``given``, in order; ``words`` of the one that is next, ``end`` of none.

    ``jobs``: 1 in this process; more in so many processes of one thread each (-1: one for each core), which see large
    arrays through memory-mapped files, so that these are there once. Results are the same however many there are.
    """
    found: list[Result] = []
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        stream = joblib.Parallel(n_jobs=jobs, return_as="generator")(joblib.delayed(work)(*one) for one in given)
        for number in range(len(given) + 1):
            if progress is not None:
                progress(words(number) if number < len(given) else end, number, len(given))
            if number < len(given):
                found.append(next(stream))
    return found
