"""Memory that was freed, given back to the operating system between the stages of a job."""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import cache
from typing import Any


@cache
def _trim() -> Any:
    """``malloc_trim`` of glibc; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except OSError:
        return None


def give_back() -> None:
    """Give freed memory back to the operating system, where the C library can (glibc).

    A pass over data frees activations of tens of megabytes among smaller things that stay; the allocator keeps such
    pages, and the next stage, whose tensors have other sizes, asks for more. Call it where a stage has ended, not in a
    loop. Cost: milliseconds, and some for pages that are asked for again.
    """
    gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)
