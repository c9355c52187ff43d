"""The ways to a network of low rank beside dynamical training, one file each, on the same ground; by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any

from rankfold.induce.ways.cuttlefish import Cuttlefish
from rankfold.induce.ways.frobenius import FrobeniusDecay
from rankfold.induce.ways.guide import Guided, Way
from rankfold.induce.ways.lcnn import LearningCompression
from rankfold.induce.ways.maestro import Maestro
from rankfold.induce.ways.pufferfish import Pufferfish
from rankfold.induce.ways.sparse import SparseFactors

WAYS: Mapping[str, type[Way]] = {
    way.name: way for way in (Cuttlefish, LearningCompression, Pufferfish, FrobeniusDecay, SparseFactors, Maestro)
}


def way_named(name: str, **settings: Any) -> Way:
    """The way called ``name`` with these settings, of which numbers may be text, as YAML reads 1e-4. ``ValueError`` for
    an unknown name or setting, or a wrong value."""
    from pydantic import TypeAdapter, ValidationError

    if name not in WAYS:
        near = get_close_matches(str(name), WAYS, 1)
        raise ValueError(
            f"there is no way to low rank named {name!r}: {f'did you mean {near[0]}? The' if near else 'the'} ways "
            f"are {', '.join(WAYS)}"
        )
    kind = WAYS[name]
    known = [field.name for field in fields(kind)]
    for key, value in settings.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            meant = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{name} has no setting {key}; {meant}")
        if isinstance(value, bool):
            raise ValueError(f"{name}: {key} cannot be {str(value).lower()}: none of its settings is a switch")
    try:
        return TypeAdapter(kind).validate_python(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        said = fault["msg"].removeprefix("Value error, ")
        if fault["type"] != "value_error":
            said = f"{name}: {fault['loc'][0]}: {said[0].lower()}{said[1:]}, got {fault['input']!r}"
        raise ValueError(said) from None


def settings_of(way: Way) -> dict[str, Any]:
    """Its name and settings as plain values; ``way_named(**settings)`` is the inverse."""
    return {"name": way.name} | asdict(way)


__all__ = [
    "Cuttlefish", "FrobeniusDecay", "Guided", "LearningCompression", "Maestro", "Pufferfish", "SparseFactors", "WAYS",
    "Way", "settings_of", "way_named",
]  # fmt: skip
