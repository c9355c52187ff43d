"""The memory of this machine: how much is free, and what was freed given back between the stages of a job."""

from __future__ import annotations

import ctypes
import gc
import math
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


def amount(size: float) -> str:
    """Bytes as a reader wants them: 12.3 MB."""
    unit, of = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6) if size >= 1e6 else ("kB", 1e3)
    return f"{size / of:,.1f} {unit}"


def at_least(size: float) -> str:
    """What to give so that ``size`` bytes are allowed: ``--memory 13MB``."""
    return f"--memory {math.ceil(size / 1e6)}MB"


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


_promised = False  # that memory stays within a bound


def settled() -> None:
    """From here on, in the whole process, tensors of up to 32 MiB come from one heap that keeps up to 64 MiB of what
    was freed, as glibc has it by itself after long work; elsewhere, and within ``steady``, nothing changes.

    Until then it hands the pages of large tensors back with each of them and asks for them anew: of a forward pass of a
    convolutional network a sixth of the time.
    """
    option = _of_glibc("mallopt")
    if option is not None:
        option(_MMAP, _STEADY if _promised else _LARGEST)
        option(_TRIM, _STEADY if _promised else 2 * _LARGEST)


@contextmanager
def steady(bound: int | None) -> Iterator[None]:
    """Within the block, where a ``bound`` in bytes was promised: every tensor of a megabyte or more has pages of its
    own, which go back to the system with it (glibc; elsewhere nothing changes), in the whole process.

    From one heap small tensors that stay keep the room of large ones that are gone: half as much again as a bound
    promised, with blocks of 13 MB. Cost: pages that are asked for anew, a third of the time of a profile of ResNet56.
    """
    global _promised
    before, _promised = _promised, _promised or bound is not None
    settled()
    try:
        yield
    finally:
        _promised = before
        settled()


def _resident() -> int | None:
    """Bytes of this process that lie in memory; None where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


_GROWTH, _BOUND = 64 * 2**20, 8 * 2**20  # bytes that are worth the time to collect them; where a bound was promised
_left = 0  # bytes that lay in memory when last some were given back


def give_back() -> None:
    """Give freed memory back to the operating system, where the C library can (glibc) and it has become much.

    A pass over data frees activations of tens of megabytes among smaller things that stay; the allocator keeps such
    pages, and the next stage, whose tensors have other sizes, asks for more. Call it where a stage has ended; in a loop
    within ``steady`` alone. Cost: a fifth of a second for a process that holds torch, and some for pages that are asked
    for again; microseconds while the process has grown by less than 64 MiB since the last time; within ``steady`` while
    it has not grown at all.
    """
    global _left
    now, worth = _resident(), _BOUND if _promised else _GROWTH
    if now is not None and now < _left + (0 if _promised else worth):
        return
    trim = _of_glibc("malloc_trim")
    for collect in (lambda: None, gc.collect):  # what is only freed goes back in a millisecond
        collect()
        if trim is not None:
            trim(0)
        if now is not None and (now := _resident()) is not None and now < _left + worth:
            break
    _left = _resident() or 0
