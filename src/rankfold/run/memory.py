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


def _resident() -> int | None:
    """Bytes of this process that lie in memory; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


_GROWTH = 64 * 2**20  # bytes that are worth the time to collect them
_left = 0  # bytes that lay in memory when last some were given back


def give_back() -> None:
    """Give freed memory back to the operating system, where the C library can (glibc) and it has become much.

    A pass over data frees activations of tens of megabytes among smaller things that stay; the allocator keeps such
    pages, and the next stage, whose tensors have other sizes, asks for more. Call it where a stage has ended, not in a
    loop. Cost: a fifth of a second for a process that holds torch, and some for pages that are asked for again;
    microseconds while the process has grown by less than 64 MiB since the last time.
    """
    global _left
    now = _resident()
    if now is not None and now < _left + _GROWTH:
        return
    gc.collect()
    trim = _trim()
    if trim is not None:
        trim(0)
    _left = _resident() or 0
