"""Directories that others read: compressed models, whole or not at all."""

from rankfold.store.loading import Stored, load
from rankfold.store.manifest import MANIFEST, UNFINISHED, StoreError, Unfinished, read_manifest, saved_files, unfinished
from rankfold.store.ours import check_ours
from rankfold.store.saving import save

__all__ = [
    "MANIFEST", "UNFINISHED", "StoreError", "Stored", "Unfinished", "check_ours", "load", "read_manifest", "save",
    "saved_files", "unfinished",
]  # fmt: skip
