"""What in a directory rankfold wrote, and what is somebody else's and would be lost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from rankfold.run.disk.container import parsed
from rankfold.run.disk.foreign import foreign
from rankfold.run.disk.pretrained import CONFIG, FolderError, is_factored
from rankfold.run.disk.tensors import INDEX
from rankfold.sites import is_pretrained, unwrap
from rankfold.sites.adapters import why_adapted
from rankfold.store.manifest import MANIFEST, TENSORS, StoreError, vouched

ALIASES = "rankfold.aliases"  # in the metadata of weights: which names share a tensor
_FOLDER = (TENSORS, MANIFEST, CONFIG, INDEX)  # what nobody could make again from what is written in its place
_OWN = (TENSORS, MANIFEST)


def check_ours(directory: str | Path, model: nn.Module) -> None:
    """``StoreError``, before any work, where saving ``model`` in ``directory`` would replace weights, or what says how
    they are to be read, that rankfold did not write; and for a model that cannot be saved at all."""
    directory, root = Path(directory), unwrap(model)
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file: give a directory")
    if said := why_adapted(root):
        raise StoreError(said)
    if is_pretrained(root):
        from rankfold import hub  # imports transformers, which is there already

        try:
            hub.check_plain(root)
        except FolderError as error:
            raise StoreError(str(error)) from None
    check_files(directory, _FOLDER if is_pretrained(root) else _OWN)


def check_files(directory: Path, names: Iterable[str]) -> None:
    """The same for the files ``names``. Ours is what a manifest of ours names, and weights and configurations that
    carry a mark of ours."""
    known = vouched(directory)
    for name in sorted(names):
        file = directory / name
        if name in known or not (name in _FOLDER or name.endswith(".safetensors")) or not file.exists():
            continue
        if not (_marked(directory) or (name == MANIFEST and (known or _damaged(file)))):
            raise StoreError(foreign(file))


def _marked(directory: Path) -> bool:
    """Whether the weights or the configuration in a directory say without a manifest that they are ours."""
    try:
        if is_factored(directory):
            return True
        with safe_open(directory / TENSORS, "pt") as opened:
            return ALIASES in (opened.metadata() or {})
    except (SafetensorError, FolderError, OSError, ValueError):
        return False


def _damaged(file: Path) -> bool:
    """Whether a manifest is none at all, so that nothing is lost with it."""
    try:
        return not isinstance(parsed(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return True
