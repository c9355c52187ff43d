"""The memory of this machine: how much is free, and what was freed given back between the stages of a job."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available() -> int | None:
    """Bytes that can still be asked for, within the limit of a container; None where the system does not tell."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used in _LIMITS:  # of control groups, in their second and first version
        with suppress(OSError, ValueError):
            most, now = (int((Path("/sys/fs/cgroup") / name).read_text(encoding="ascii")) for name in (limit, used))
            found.append(max(most - now, 0))
    if not found:
        with suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


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
