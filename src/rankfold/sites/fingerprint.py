"""Hashes by which a model is known again: its architecture, and its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rankfold.observe import PAGES, Pages
from rankfold.sites.find import unwrap
from rankfold.sites.foreign import check_gathered, packed, stored

_LOOKUPS = 16  # after two of them rows are short enough


def fingerprint(model: nn.Module) -> str:
    """``architecture:weights``: hashes of names, shapes and dtypes, and of the values, of parameters and buffers.

    Buffers that training updates (BatchNorm statistics) count too. Cost: one pass over the parameters.
    """
    structure, values = hashlib.sha256(), hashlib.sha256()
    for name, tensor in _everything(model):
        structure.update(_line(name, tensor, tensor.dtype))
        for part in () if tensor.is_meta else stored(tensor):
            flat = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            values.update(flat.numpy().data)
    return f"{structure.hexdigest()[:16]}:{values.hexdigest()[:16]}"


def architecture(model: nn.Module, floating: torch.dtype) -> str:
    """The first half of the fingerprint, as if every real number were of the dtype ``floating``."""
    structure = hashlib.sha256()
    for name, tensor in _everything(model):
        structure.update(_line(name, tensor, floating if tensor.is_floating_point() else tensor.dtype))
    return structure.hexdigest()[:16]


def _line(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> bytes:
    return f"{name}{tuple(tensor.shape)}{dtype};".encode()


def _everything(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by their names, where weights stay on the disk by those that they have in the file."""
    root = unwrap(model)
    pages: Pages | None = getattr(root, PAGES, None)
    known, earlier = {**packed(root.named_modules()), **root.state_dict()}, {} if pages is None else pages.earlier
    tables = ((name, m) for name, m in root.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    bounded = {f"{name}.weight".lstrip("."): m for name, m in tables if m.max_norm is not None}
    for name, here in sorted((earlier.get(name, name), name) for name in known):
        tensor = known[here]
        if isinstance(tensor, torch.Tensor):
            tensor = tensor if pages is None else pages.value(here, tensor)
            check_gathered(name, tensor)
            yield name, _shortened(tensor, bounded[here]) if here in bounded else tensor


def _shortened(table: torch.Tensor, embedding: Any) -> torch.Tensor:
    """A table once every row was looked up: with ``max_norm`` each look-up shortens rows, in the weight itself, and
    again those that rounding left too long."""
    if table.is_meta:
        return table
    found, rows = table.detach().clone(), torch.arange(len(table), device=table.device)
    for _ in range(_LOOKUPS):
        before = found.clone()
        torch.embedding_renorm_(found, rows, embedding.max_norm, embedding.norm_type)
        if torch.equal(found, before):
            break
    return found
