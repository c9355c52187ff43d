"""The state of a run in a directory: complete or absent, whatever happens while it is written.

A checkpoint is a file `checkpoint-<epoch>.pt` of tensors and plain values and, written after it, the manifest
`checkpoint.json` with its name and SHA-256. Reading never runs code from the file.
"""

import errno
import io
import json
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from rankfold.run import claim
from rankfold.run.disk.container import FAULTS, read_object, said
from rankfold.run.disk.files import sha256, write_atomically
from rankfold.run.processes.team import Team
from rankfold.train.errors import TrainingError

CHECKPOINT = re.compile(r"checkpoint-\d{4,}\.pt")
_MANIFEST = "checkpoint.json"
_FORMAT = 1


@contextmanager
def claimed(directory: str | Path | None, team: Team) -> Iterator[None]:
    """The directory of a run held by the first process of ``team``; TrainingError in all while another job has it."""
    with ExitStack() as stack:
        if directory is not None:
            team.shared(lambda: stack.enter_context(_claimed(Path(directory))))
        yield


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(claim.claimed(directory, what="training"))
        except claim.ClaimError as error:
            raise TrainingError(str(error)) from None
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # nobody can write here through us: a finished run may still be read back
        yield


def save(directory: Path, epoch: int, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, None; nested) as the checkpoint of `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    name = f"checkpoint-{epoch:04d}.pt"
    write_atomically(directory / name, content)
    manifest = {
        "format": _FORMAT,
        "file": name,
        "sha256": sha256(content),
        "epoch": epoch,
    }
    write_atomically(directory / _MANIFEST, json.dumps(manifest).encode())
    for old in directory.glob("checkpoint-*.pt"):
        if old.name != name and CHECKPOINT.fullmatch(old.name):
            old.unlink(missing_ok=True)


def survives(value: Any) -> bool:
    """Whether a checkpoint that holds ``value`` can be read again."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # of somebody's own class, which may raise anything
        return False
    return True


def load(directory: Path) -> dict[str, Any] | None:
    """The state last saved in `directory`, tensors on the CPU; None if there is none.

    Raises TrainingError if the manifest or the file it names is missing, damaged or foreign.
    """
    manifest = directory / _MANIFEST
    if not manifest.exists():
        return None
    anew = f"delete {directory} to begin anew"
    try:
        entry = read_object(manifest, "the manifest of a checkpoint", anew)
        known = entry.get("format") == _FORMAT
        file = directory / Path(str(entry["file"])).name if known else manifest
        content = file.read_bytes() if known else b""
        if not known or sha256(content) != entry["sha256"]:
            raise TrainingError(
                f"checkpoint {file} is damaged, was changed since it was written, or is of another version: {anew}"
            )
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except TrainingError:
        raise
    except (OSError, pickle.UnpicklingError, EOFError, *FAULTS) as error:
        raise TrainingError(f"checkpoint in {directory} cannot be read ({said(error)}): {anew}") from error


def write_lines(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace `file` by one JSON object a line."""
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows).encode())
