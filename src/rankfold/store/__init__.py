"""Directories that others read: compressed models, whole or not at all."""

from rankfold.store.loading import Stored, load
from rankfold.store.manifest import StoreError, read_manifest
from rankfold.store.saving import save

__all__ = ["StoreError", "Stored", "load", "read_manifest", "save"]
