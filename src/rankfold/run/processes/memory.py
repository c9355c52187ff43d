"""The memory of this machine: how much is free, and what was freed given back between the stages of a job."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
def _of_glibc(name: str) -> Any:
    """A function of glibc; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:
        return None


_TRIM, _MMAP = -1, -3  # what mallopt calls its thresholds
_STEADY = 1 << 20
_LARGEST = 32 << 20  # up to which glibc raises its threshold by itself: where long work with tensors ends


@contextmanager
def steady() -> Iterator[None]:
    """Within the block, of the whole process: every tensor of a megabyte or more has pages of its own, which go back to
    the system with it (glibc; elsewhere nothing changes).

    By itself glibc takes ever larger tensors from one heap, where small ones that stay keep the room of large ones that
    are gone: half as much again as a bound promised, with blocks of 13 MB. Cost: pages that are asked for anew.
    """
    option = _of_glibc("mallopt")
    if option is None:
        yield
        return
    option(_MMAP, _STEADY)
    option(_TRIM, _STEADY)
    try:
        yield
    finally:
        option(_MMAP, _LARGEST)
        option(_TRIM, 2 * _LARGEST)


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
    trim = _of_glibc("malloc_trim")
    for collect in (lambda: None, gc.collect):  # what is only freed goes back in a millisecond
        collect()
        if trim is not None:
            trim(0)
        if now is not None and (now := _resident()) is not None and now < _left + _GROWTH:
            break
    _left = _resident() or 0
