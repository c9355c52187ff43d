"""One exclusive claim of a directory, which also holds between machines that share the folder.

The claim is a small file with who holds it: host, process, start, since when. It comes into being whole or not at all
(a hard link, which is exclusive on network file systems too) and its holder touches it every few seconds. It is free
again when it is gone; when its holder, a process of this machine, is gone; or when its holder, of another machine, has
not touched it for a minute, by the clock of the file server. A live process of this machine holds it however long ago
it was touched: a machine may have slept.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from rankfold.run.processes.process import Process, this_process

NAME = ".rankfold-claim"
STALE = 60.0  # seconds without a touch after which a holder that cannot be seen counts as dead
BEAT = 10.0  # seconds between touches
_PAUSE = 0.02  # seconds between two looks while waiting
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_held: dict[str, tuple[int, int]] = {}  # lock file → process and thread of this program that hold it


class ClaimError(ValueError):
    """A directory is another job's; one line: who holds it, since when, and what can be done."""


@dataclass(frozen=True)
class Holder:
    """Who holds a claim, and for what. ``age``: seconds since it was last touched."""

    process: Process
    since: str
    what: str
    mark: str
    age: float = 0.0

    def dead(self, stale: float) -> bool:
        """Whether the claim is free to be taken over."""
        alive = self.process.alive
        return self.age > stale if alive is None else not alive

    def __str__(self) -> str:
        doing = f" ({self.what})" if self.what else ""
        return f"process {self.process.pid} on {self.process.host}{doing} since {self.since}"


@contextmanager
def claimed(
    directory: str | Path,
    *,
    what: str = "",
    wait: float = 0.0,
    name: str = NAME,
    stale: float = STALE,
    now: Callable[[], float] | None = None,
) -> Iterator[None]:
    """Hold ``directory`` alone within the block; it is made where it is missing, and goes again if it stays empty.

    Within a block of the same thread another one for the same directory holds it too. ``wait``: seconds to wait for a
    living holder. ``now`` stands in for the clock of the file server (for tests). Raises ``ClaimError`` while another
    job holds the directory, ``OSError`` where nothing can be written there.
    """
    directory = Path(directory)
    lock = directory / name
    key, me = os.path.realpath(lock), (os.getpid(), threading.get_ident())
    if _held.get(key) == me:
        yield
        return
    made = not directory.exists()
    try:
        handle = _taken(lock, what, wait, stale, now)
    except BaseException:
        _remove_empty(directory, made)
        raise
    ended = threading.Event()
    threading.Thread(target=_beat, args=(handle, ended), daemon=True, name="rankfold-claim").start()
    _held[key] = me
    try:
        yield
    finally:
        if _held.get(key) == me:
            del _held[key]
        with suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):  # else it was taken over while this machine slept
                os.unlink(lock)
        ended.set()
        _remove_empty(directory, made)


def holder(directory: str | Path, *, name: str = NAME, stale: float = STALE) -> Holder | None:
    """Who holds ``directory`` now; None if it is free. ``age`` is by the clock of this machine."""
    found = _read(Path(directory) / name, time.time)
    return None if found is None or found.dead(stale) else found


def _taken(lock: Path, what: str, wait: float, stale: float, now: Callable[[], float] | None) -> int:
    """The open file of the claim, once it is ours."""
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    me = {"process": asdict(this_process()), "since": since, "what": what, "mark": uuid.uuid4().hex}
    mine = lock.with_name(f"{lock.name}.{me['mark']}")
    until = time.monotonic() + wait
    handle = _created(mine)

    def clock() -> float:
        os.utime(handle)  # the file server says what time it is
        return os.fstat(handle).st_mtime

    try:
        text = (json.dumps(me) + "\n").encode()
        os.write(handle, text)
        while not _linked(mine, lock, text):
            other = _read(lock, now or clock)
            if other is None:
                continue
            if other.dead(stale):
                _bury(lock, other, mine, text, now or clock, stale)
            elif time.monotonic() < until:
                time.sleep(_PAUSE)
            else:
                raise ClaimError(
                    f"{lock.parent} is in use by {other}: wait until it ends, end it, or give another directory"
                )
        if not os.path.samestat(os.fstat(handle), os.stat(lock)):  # no links here: the lock is a file of its own
            os.close(handle)
            handle = os.open(lock, os.O_RDWR)
        return handle
    except BaseException:
        os.close(handle)
        raise
    finally:
        mine.unlink(missing_ok=True)


def _created(mine: Path) -> int:
    """A new file, in a directory that another process may be removing because it was empty."""
    for _ in range(100):
        mine.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            return os.open(mine, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(mine.parent))


def _linked(mine: Path, lock: Path, text: bytes) -> bool:
    """Put ``mine`` at ``lock`` unless something is there; whether that was done."""
    try:
        os.link(mine, lock)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            other = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        os.write(other, text)
        os.close(other)
    return True


def _bury(lock: Path, dead: Holder, mine: Path, text: bytes, now: Callable[[], float], stale: float) -> None:
    """Remove the claim of ``dead``, and no other: one at a time, who looks again before it acts."""
    guard = lock.with_name(f"{lock.name}.burial")
    if not _linked(mine, guard, text):
        found = _read(guard, now)
        if found is not None and found.dead(stale):
            guard.unlink(missing_ok=True)
        time.sleep(_PAUSE)
        return
    try:
        found = _read(lock, now)
        if found is not None and found.mark == dead.mark and found.dead(stale):
            lock.unlink(missing_ok=True)
    finally:
        guard.unlink(missing_ok=True)


def _read(lock: Path, now: Callable[[], float]) -> Holder | None:
    """What is written in a claim; None if there is none. One that cannot be read lives as long as it is young."""
    try:
        with lock.open("rb") as file:  # opened, so that a network file system asks the server
            content, status = file.read(10_000), os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return None
    age = now() - status.st_mtime
    try:
        known = json.loads(content)
        process = Process(**known["process"])
        typed = isinstance(process.pid, int) and isinstance(process.place, str)
        if typed:
            return Holder(process, str(known["since"]), str(known["what"]), str(known["mark"]), age)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    since = f"{datetime.fromtimestamp(status.st_mtime, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Holder(Process("another machine", "", 0, ""), since, "unreadable claim", f"{status.st_ino}", age)


def _beat(handle: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(handle)
    with suppress(OSError):
        os.close(handle)


def _remove_empty(directory: Path, made: bool) -> None:
    if made:
        with suppress(OSError):
            directory.rmdir()
