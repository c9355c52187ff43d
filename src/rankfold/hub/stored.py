"""The tensors of a folder by the names that its model has: as they lie there, or put together from pieces.

Experts lie in the files of most folders one by one, and in the model as one tensor. How transformers makes one of the
other is asked of transformers: its own conversions are run, for one tensor of the model at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankfold.run.disk.tensors import Checkpoint


class _Piece(NamedTuple):
    """One tensor of the files. ``pattern``: by which the conversion knows it."""

    stored: str
    pattern: str


class _Made(NamedTuple):
    """A tensor of the model, the ``target`` that a ``conversion`` of transformers makes of its pieces."""

    target: str
    first: str
    conversion: Any
    pieces: list[_Piece]


class Stored(Checkpoint):
    """The tensors of the model of ``directory``. Raises ``ValueError`` as ``Checkpoint`` does.

    ``called``: how the model calls what the files hold under another name, whether it has such a tensor or not.
    """

    def __init__(self, directory: str | Path, model: Any) -> None:
        super().__init__(directory)
        self.made, self.called = _made(model, frozenset(super().names))
        self.model = model

    def __contains__(self, name: str) -> bool:
        return super().__contains__(name) or name in self.made

    @property
    def names(self) -> list[str]:
        pieces = {piece.stored for made in self.made.values() for piece in made.pieces}
        return [*(name for name in super().names if name not in pieces), *self.made]

    def shape(self, name: str) -> tuple[int, ...]:
        """``ValueError`` for a tensor whose pieces do not fit one another."""
        if super().__contains__(name):
            return super().shape(name)
        pieces = self.made[name].pieces
        try:
            return tuple(self._converted(name, {p.stored: self._ghost(p.stored) for p in pieces}).shape)
        except (RuntimeError, ValueError, LookupError, TypeError):
            raise ValueError(
                f"{self.title}: {name} is put together from {len(pieces)} tensors (the first is "
                f"{pieces[0].stored}) that do not fit together: one is missing or has another shape; download "
                "the folder again"
            ) from None

    def kind(self, name: str) -> str:
        """How the file calls the type; of pieces that of the first, which all of them have, or "several types"."""
        if super().__contains__(name):
            return super().kind(name)
        kind = super().kind
        kinds = {kind(piece.stored) for piece in self.made[name].pieces}
        return kinds.pop() if len(kinds) == 1 else "several types"

    def read(self, name: str) -> Tensor:
        """One tensor; put together it takes its own size twice for a moment."""
        read = super().read
        if super().__contains__(name):
            return read(name)
        return self._converted(name, {piece.stored: read(piece.stored) for piece in self.made[name].pieces})

    def _ghost(self, stored: str) -> Tensor:
        return torch.empty(super().shape(stored), device="meta")

    def _converted(self, name: str, values: dict[str, Tensor]) -> Tensor:
        made = self.made[name]
        conversion = copy.deepcopy(made.conversion)
        for stored, pattern in made.pieces:
            conversion.add_tensor(made.first, stored, pattern, values.pop(stored))
        found = conversion.convert(made.first, model=self.model, config=self.model.config)[made.target]
        return found[0] if isinstance(found, list) else found


def _made(model: Any, names: frozenset[str]) -> tuple[dict[str, _Made], dict[str, str]]:
    """What of the model is made of other tensors of the files, and how it calls these; nothing with a version of
    transformers that does not convert."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError:
        return {}, {}
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    state: Mapping[str, Tensor] = model.state_dict()
    found: dict[str, _Made] = {}
    called: dict[str, str] = {}
    for stored in sorted(names, key=dot_natural_key):
        if stored in state:
            continue
        renamed, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, dict(state))
        called[stored] = renamed
        conversion = WeightRenaming(stored, renamed) if pattern is None else by_pattern[pattern]
        targets = [renamed]
        if pattern is not None:
            first, *others = conversion.target_patterns
            targets += [renamed.replace(first, other) for other in others]
        for target in targets:
            if target in state and target not in names:
                known = found.setdefault(target, _Made(target, renamed, conversion, []))
                known.pieces.append(_Piece(stored, pattern or stored))
    return found, called
