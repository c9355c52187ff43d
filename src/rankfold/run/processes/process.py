"""Which process is meant, and whether it still lives: for locks and temporary files that outlive their writer."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK = 1.0  # seconds between two looks for the parent of a worker


@dataclass(frozen=True)
class Process:
    """``place``: where ``pid`` means something (a running machine and its process namespace), 8 hexadecimal digits.

    ``started``: when it began, in the system's own words, since a number is given again to another process; "" where
    the system does not tell.
    """

    host: str
    place: str
    pid: int
    started: str

    @property
    def alive(self) -> bool | None:
        """Whether it runs (not one that ended and was not waited for); None where that cannot be seen from here."""
        if self.place != _place():
            return None
        if self.pid < 1 or not _exists(self.pid):
            return False
        state, started = _stat(self.pid)
        return state not in ("Z", "X") and started == self.started


def this_process() -> Process:
    """The process that asks."""
    pid = os.getpid()
    return Process(socket.gethostname(), _place(), pid, _stat(pid)[1])


def ends_with(parent: int) -> None:
    """End this process within about a second once ``parent``, the process that started it, is gone.

    For workers, which otherwise go on computing for nobody. Does nothing in ``parent`` itself; a second call for the
    same process does nothing. The end is abrupt: whatever is written must be written atomically.
    """
    if parent != os.getpid():
        _watch(os.getpid(), parent)


@functools.cache
def _watch(pid: int, parent: int) -> None:
    # that of a worker of a worker is asked for by its number, which says less than the parent's
    direct = os.getppid() == parent
    known = Process("", _place(), parent, _stat(parent)[1])

    def look() -> None:
        while (os.getppid() == parent) if direct else known.alive:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="rankfold-parent").start()


@functools.cache
def _place() -> str:
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _stat(pid: int) -> tuple[str, str]:
    """(state, time of the start) as Linux tells them; empty elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (OSError, IndexError):
        return "", ""


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    except OverflowError:
        return False
    return True
