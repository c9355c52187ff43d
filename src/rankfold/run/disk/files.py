"""Writing files so that neither a crash nor a full disk nor a second writer destroys any, and reading them whole."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from rankfold.run.claim import claimed
from rankfold.run.processes.process import Process, this_process

_WRITING = ".rankfold-writing"  # the claim of whoever replaces several files together
_WAIT = 600.0  # seconds for another writer
_ABANDONED = 3600.0  # seconds after which the temporary file of a writer that cannot be seen is a leftover
_LOOKS, _PAUSE = 2, 0.02  # of a reader at files that do not change and do not fit; seconds between two
_PATIENCE = 30.0  # seconds of a reader with writers that do not pause
# .NAME.place-pid-start.random.tmp, and .NAME.random of the first release
_OURS = re.compile(r"\.([0-9a-f]{8})-(\d+)-(\d*)\.[0-9a-f]{8}\.tmp")
_EARLIER = re.compile(r"\.[a-z0-9_]{8}")
_WAITING = re.compile(r"\.[0-9a-f]{16}")

T = TypeVar("T")

# what NumPy raises of a damaged .npy or .npz, whose headers it has Python parse
ARRAY_FAULTS = (
    zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError, TypeError, OverflowError,
    NotImplementedError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError,
)  # fmt: skip


def check_room(directory: Path, size: int) -> None:
    """``OSError`` in one line, before any work, where the disk of ``directory`` has less than ``size`` bytes free."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"{size:,} bytes will be needed there, and {free:,} are free: free some space, or give a directory "
            "on another disk",
            str(directory),
        )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _make_way(path: Path) -> None:
    """The folders on the way to a file; ``OSError`` where one lies in its place."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder: give the name of a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a crash leaves either the old file or the new one, never half of one.

    Directories on the way are made. Of two writers the last one wins. Raises ``OSError``, which names ``path``, with
    the old file untouched.
    """
    _make_way(path)
    temporary = _written(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _clear(path.parent, [path.name], ())
    _settle(path.parent)


@contextmanager
def replacing(path: Path, settled: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path`` to be written within the block, which then takes its place; as
    ``write_atomically`` does for what does not fit into memory twice. ``settled``: it is waited for until it is on the
    disk, which only a machine that stops needs, not a process that is killed."""
    _make_way(path)
    temporary = _temporary(path)
    try:
        yield temporary
        if settled:
            handle = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    if settled:
        _clear(path.parent, [path.name], ())
        _settle(path.parent)


def digest_of(path: Path) -> str:
    """The sha256 of a file, a part of it at a time in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_together(
    directory: Path, files: Mapping[str, bytes], manifest: str, text: bytes, without: Iterable[str] = ()
) -> None:
    """Write several files and a ``manifest`` that holds their hashes; the manifest decides which of them count.

    Names may lie one folder down ("stage/config.json"). The files are first written beside their places. Then, one
    writer at a time, they get names made from their hashes, the manifest is replaced, and they are renamed. A crash
    before the manifest leaves everything as it was; after it ``read_whole`` finds the new files under either name.
    ``without``: files that belong to no manifest any more.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ready: dict[str, Path] = {}
    try:
        for name, data in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            ready[name] = _written(directory / name, data)
        ready[manifest] = _written(directory / manifest, text)
        with claimed(directory, name=_WRITING, wait=_WAIT):
            waiting = {name: _waiting(directory, name, sha256(data)) for name, data in files.items()}
            for name, path in waiting.items():
                os.replace(ready[name], path)
                del ready[name]
            os.replace(ready[manifest], directory / manifest)
            del ready[manifest]
            for name, path in waiting.items():
                os.replace(path, directory / name)
            for name in without:
                (directory / name).unlink(missing_ok=True)
            for folder in sorted({(directory / name).parent for name in (*files, *without)} | {directory}):
                here = [Path(name).name for name in (*files, *without) if (directory / name).parent == folder]
                _clear(folder, [*here, manifest] if folder == directory else here, here)
    finally:
        for path in ready.values():
            path.unlink(missing_ok=True)
    _settle(directory)


def read_whole(directory: Path, name: str, digest: str) -> bytes | None:
    """The file ``name`` of ``write_together`` with this sha256, or None if what is there is something else.

    Raises ``OSError`` if there is no such file at all.
    """
    missing = 0
    places = (directory / name, _waiting(directory, name, digest))
    for path in places:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            missing += 1
            continue
        if sha256(data) == digest:
            return data
    if missing == len(places):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory / name))
    return None


def undisturbed(manifest: Path, read: Callable[[], T], failures: type[Exception] | tuple[type[Exception], ...]) -> T:
    """What ``read`` gives of files that another process may be replacing; its failure only once it stays.

    A reader may meet the manifest of one writer and a file of the next: it looks again for as long as the manifest
    changes, up to half a minute, and twice where it does not.
    """
    until, looks, before = time.monotonic() + _PATIENCE, 0, _version(manifest)
    while looks < _LOOKS and time.monotonic() < until:
        try:
            return read()
        except failures:
            time.sleep(_PAUSE)
        now = _version(manifest)
        looks, before = (looks + 1 if now == before else 0), now
    return read()


def _version(file: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        status = file.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def by_digest(directory: Path, pattern: str, digest: str) -> bytes | None:
    """What is in a file of ``directory`` whose name matches ``pattern`` and whose bytes have this sha256. Reads all."""
    for path in sorted(directory.glob(pattern)):
        if digest_of(path) == digest:
            return read_whole(directory, path.name, digest)
    return None


def _temporary(path: Path) -> Path:
    me = this_process()
    return path.with_name(f".{path.name}.{me.place}-{me.pid}-{me.started}.{secrets.token_hex(4)}.tmp")


def _written(path: Path, data: bytes) -> Path:
    """``data`` in a temporary file beside ``path``, on the disk; its name says whose it is."""
    temporary = _temporary(path)
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _waiting(directory: Path, name: str, digest: str) -> Path:
    path = directory / name
    return path.with_name(f".{path.name}.{digest[:16]}")


def _clear(directory: Path, names: Iterable[str], together: Iterable[str]) -> None:
    """Remove what dead writers of ``names`` have left; of ``together`` also files that no manifest names any more."""
    if not directory.is_dir():
        return
    known, settled = [f".{name}" for name in names], {f".{name}" for name in together}
    for entry in list(os.scandir(directory)):
        for start in known:
            rest = entry.name.removeprefix(start)
            if rest != entry.name and _left(rest, entry, start in settled):
                with suppress(OSError):
                    os.unlink(entry.path)


def _left(rest: str, entry: os.DirEntry[str], settled: bool) -> bool:
    """Whether a file with this ``rest`` of its name is nobody's any more."""
    if _WAITING.fullmatch(rest):
        return settled
    ours = _OURS.fullmatch(rest)
    alive = Process("", ours[1], int(ours[2]), ours[3]).alive if ours else None
    if alive is not None:
        return not alive
    if not ours and not _EARLIER.fullmatch(rest):
        return False
    with suppress(OSError):
        return time.time() - entry.stat().st_mtime > _ABANDONED
    return False


def _settle(directory: Path) -> None:
    """Ask for the renames themselves to be on the disk, where the system knows how."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
