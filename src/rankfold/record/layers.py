"""How a site is read, as plain values: a recording goes on with layers that have become something else since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rankfold.forms import Layer
from rankfold.run.disk.container import checked
from rankfold.sites.kinds.convolution import ConvLayer
from rankfold.sites.kinds.embedding import EmbeddingLayer
from rankfold.sites.kinds.experts import ExpertsLayer
from rankfold.sites.kinds.linear import LinearLayer

_KINDS: Mapping[str, Any] = {kind.__name__: kind for kind in (LinearLayer, EmbeddingLayer, ConvLayer, ExpertsLayer)}


def told(layer: Layer | None) -> dict[str, Any] | None:
    """What ``layer_of`` makes it from again; None for a type of one's own, which only the model can tell again."""
    name = type(layer).__name__
    return {"type": name, "values": asdict(layer)} if type(layer) is _KINDS.get(name) else None  # type: ignore[call-overload]


def layer_of(held: Mapping[str, Any] | None) -> Layer | None:
    """The inverse of ``told``; ``ValueError`` for values that no layer has."""
    kind = None if held is None else _KINDS.get(held["type"])
    return None if held is None or kind is None else checked(kind, held["values"])
