"""The manifest of a directory: which files belong to it, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankfold.run.disk.container import parsed
from rankfold.run.disk.files import read_whole, sha256, undisturbed, write_together
from rankfold.run.progress import Note

FORMAT, PRETRAINED = 1, 2  # a directory of rankfold's own; a Hugging Face folder
PLAN, TENSORS, MANIFEST = "plan.json", "model.safetensors", "manifest.json"
EDITED = "; an edited plan is carried out anew: rankfold apply (rankfold.apply_)"
BOTTLENECKS = "bottlenecks.safetensors"
UNFINISHED = "unfinished"  # among the notes: what the job that wrote the directory had still to do
_REQUEST = "run/request.json"  # of a run that ends with a manifest


class StoreError(ValueError):
    """A file is missing, damaged, foreign or does not fit the model; one line.

    Example:
        >>> try:
        ...     rf.load("nowhere", nn.Sequential(nn.Linear(8, 8)))
        ... except rf.StoreError as error:
        ...     print("nowhere" in str(error))
        True
    """


class Unfinished(Note):
    """A directory was written by a job that has not ended."""


def unfinished(directory: Path, notes: Mapping[str, Any]) -> str | None:
    """One line where the job that wrote ``directory`` was interrupted, or is still at work; None where it has ended."""
    left = notes.get(UNFINISHED)
    if not isinstance(left, str) or not left:
        return None
    return (
        f"{directory}: the job that wrote it has not ended, and {left} is still to come: the same command goes on "
        "where it stopped"
    )


def checked_notes(notes: Any) -> dict[str, Any]:
    """Notes that a manifest can hold; ``StoreError`` for others, before anything is written."""
    if not isinstance(notes, Mapping | None):
        raise StoreError(f"notes are facts by name, such as {{'epochs': 3}}, got a {type(notes).__name__}")
    for key, value in (notes or {}).items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(
                f"the note {key!r} cannot be written as JSON ({error}): give text, numbers, lists or mappings of "
                "these; of a tensor its item() or tolist()"
            ) from None
    return dict(notes or {})


def write(
    directory: Path,
    files: Mapping[str, bytes],
    notes: Mapping[str, Any] | None,
    format: int = FORMAT,
    there: Mapping[str, str] | None = None,
) -> None:
    """Write ``files`` with a manifest; what an earlier one vouched for and is not among them is removed, and a single
    file of weights, which would be read in place of parts. ``there``: files that lie there already, with their hashes.
    """
    facts = {
        "format": format,
        "files": {name: sha256(data) for name, data in files.items()} | dict(there or {}),
        "notes": checked_notes(notes),
    }
    manifest = json.loads(json.dumps(facts))  # as it will be read: text keys, no tuples
    manifest["sha256"] = _own_hash(manifest)
    text = (json.dumps(manifest, indent=1) + "\n").encode()
    earlier = {BOTTLENECKS, TENSORS, *vouched(directory)} - manifest["files"].keys()
    write_together(directory, files, MANIFEST, text, without=sorted(earlier))


def vouched(directory: Path) -> set[str]:
    """The files that a manifest of rankfold in ``directory`` names, where it can be read; none of anybody else's."""
    try:
        found = parsed((directory / MANIFEST).read_text(encoding="utf-8"))
        ours = isinstance(found["format"], int) and isinstance(found["sha256"], str) and PLAN in found["files"]
        return {name for name in found["files"] if _inside(name)} if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def saved_files(directory: Path) -> set[str]:
    """What a save of rankfold's wrote in ``directory``, the manifest with it; nothing where there is none."""
    found = vouched(directory)
    return found | {MANIFEST} if found else found


def _inside(name: Any) -> bool:
    """Whether it names a file in the directory or one level below it."""
    path = Path(str(name))
    return isinstance(name, str) and not path.is_absolute() and ".." not in path.parts and 0 < len(path.parts) < 3


def _own_hash(manifest: Mapping[str, Any]) -> str:
    """The hash of everything else in a manifest, whatever its layout as text."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a saved model after checking every file against it. Raises ``StoreError``."""
    return opened(Path(directory))[0]


def opened(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and what is in each file it vouches for; those of one writer where several are at work."""
    return undisturbed(directory / MANIFEST, lambda: _once(directory), StoreError)


def _once(directory: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    manifest = _parsed(directory)
    contents = {}
    for name, digest in manifest["files"].items():
        try:
            found = read_whole(directory, name, str(digest))
        except OSError as error:
            raise StoreError(f"{directory}/{name}: {error.strerror or error}") from None
        if found is None:
            raise StoreError(
                f"{directory}/{name}: damaged, or changed since it was saved (its sha256 is not that in {MANIFEST}): "
                f"save again, or put the file back{EDITED if name == PLAN else ''}"
            )
        contents[name] = found
    return manifest, contents


def _parsed(directory: Path) -> dict[str, Any]:
    try:
        manifest = parsed((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(_nothing(directory)) from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{directory}/{MANIFEST}: damaged ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format") not in (FORMAT, PRETRAINED):
        raise StoreError(
            f"{directory}: this is no model directory that this version reads (format {FORMAT}, {PRETRAINED})"
        )
    files = manifest.get("files")
    if (
        not isinstance(files, dict)
        or not _whole(files, manifest["format"])
        or manifest.get("sha256") != _own_hash(manifest)
    ):
        raise StoreError(f"{directory}/{MANIFEST}: damaged: its contents and its own sha256 disagree")
    if not isinstance(manifest.get("notes", {}), dict):
        raise StoreError(f"{directory}/{MANIFEST}: damaged: its notes are no JSON object")
    return manifest


def _nothing(directory: Path) -> str:
    """Why there is no manifest, with the remedy."""
    if not directory.exists():
        return f"{directory}: there is no such directory: give one that rankfold.save, compress or apply wrote"
    if not directory.is_dir():
        return f"{directory} is a file: give a directory that rankfold.save, compress or apply wrote"
    if (directory / _REQUEST).is_file():
        return (
            f"{directory}: the run in it is not finished: give the same command again, which continues where it stopped"
        )
    return (
        f"{directory}: it holds no model that rankfold saved (there is no {MANIFEST}): give a directory that "
        "rankfold.save, compress or apply wrote"
    )


def _whole(files: Mapping[str, Any], format: int) -> bool:
    """Whether a manifest names what a model needs, and nothing outside of its directory."""
    if format == FORMAT:
        return files.keys() - {BOTTLENECKS} == {PLAN, TENSORS}
    return {PLAN, "config.json"} <= files.keys() and all(map(_inside, files))
