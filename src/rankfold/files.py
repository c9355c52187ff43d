"""Writing files so that a crash or a full disk never destroys what was there, and finding what a manifest names."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``: a crash leaves either the old file or the new one, never half of one.

    Directories on the way are made. Raises ``OSError`` with the old file untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _settle(path.parent)


def write_together(directory: Path, files: Mapping[str, bytes], manifest: str, text: bytes) -> None:
    """Write several files and a ``manifest`` that holds their hashes; the manifest decides which of them count.

    The files are first written beside their places under names made from their hashes, then the manifest is replaced,
    then they are renamed. A crash before the manifest leaves everything as it was; after it ``whole`` finds the new
    files under either name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    waiting = {name: _waiting(directory, name, sha256(data)) for name, data in files.items()}
    before = {path for path in waiting.values() if path.exists()}  # a crash after the manifest leaves files that count
    try:
        for name, data in files.items():
            write_atomically(waiting[name], data)
    except BaseException:
        for path in set(waiting.values()) - before:
            path.unlink(missing_ok=True)
        raise
    write_atomically(directory / manifest, text)
    for name, path in waiting.items():
        os.replace(path, directory / name)
    for name in files:  # left by an earlier crash
        for stale in directory.glob(f".{escape(name)}.*"):
            stale.unlink(missing_ok=True)
    _settle(directory)


def whole(directory: Path, name: str, digest: str) -> Path | None:
    """The file ``name`` of ``write_together`` with this sha256, or None if what is there is something else.

    Raises ``OSError`` if there is no such file at all.
    """
    found = [path for path in (directory / name, _waiting(directory, name, digest)) if path.exists()]
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory / name))
    for path in found:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                return path
    return None


def by_digest(directory: Path, pattern: str, digest: str) -> Path | None:
    """A file of ``directory`` whose name matches ``pattern`` and whose bytes have this sha256. Reads them all."""
    for path in sorted(directory.glob(pattern)):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                return path
    return None


def _waiting(directory: Path, name: str, digest: str) -> Path:
    return directory / f".{name}.{digest[:16]}"


def _settle(directory: Path) -> None:
    """Ask for the renames themselves to be on the disk, where the system knows how."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
