"""The slider over budgets: plans as data in the page, and the script that shows one of them."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from rankfold.report import quantities
from rankfold.report.values import LayerRow, Offer, OfferedLayer, ReportData


def script() -> Markup:
    """The script of the page, word for word: its digest is what the page allows to run."""
    return Markup(files("rankfold.report").joinpath("pages", "budget.js").read_text(encoding="utf-8"))


def digest(text: str) -> str:
    """As a content security policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def nearest(data: ReportData) -> int:
    """The offer that is nearest to what was asked for: shown first, and without a script the only one."""
    kept = _built(data)
    wanted = 0.5 if kept is None else kept
    return min(range(len(data.offers)), key=lambda index: abs(getattr(data.offers[index], data.sought) - wanted))


def _built(data: ReportData) -> float | None:
    """What the network that was built keeps of that."""
    return quantities.kept(data.compressed.get(data.sought), data.before.get(data.sought))


def payload(data: ReportData) -> Markup:
    """Everything that the script needs, as JSON that may stand between tags."""
    total = sum(layer.flops_before or 0 for layer in data.layers)
    flops = data.before.get("flops") or total or 1
    values = {
        "layers": [{"flops": (layer.flops_before or 0) / flops, "tied": bool(layer.tied_to)} for layer in data.layers],
        "offers": [_offer(offer, flops) for offer in data.offers],
        "measured": [
            {"kept": kept, "text": quantities.of_figure(value, data.judged)} for kept, value in _measured(data)
        ],
        "sought": data.sought,
        "called": data.called,
    }
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))  # nothing in it may end the element


def _measured(data: ReportData) -> Iterator[tuple[float, float]]:
    """(share of what was to be small, judging figure) of every network that was built: for the curve, in a search, or
    the one that was asked for."""
    points = [(point.kept_of(data.sought), point.value) for point in data.curve]
    value = data.compressed.get(data.judged.name)
    if value is not None and quantities.known(value):
        points.append((_built(data), value))
    if data.search is not None and data.search.figure in (None, data.judged):
        points += [(point.kept_of(data.sought), point.value) for point in data.search.points]
    return ((kept, value) for kept, value in points if kept is not None)


def _offer(offer: Offer, whole: float) -> dict[str, Any]:
    return {
        "flops": _short(offer.flops), "params": _short(offer.params), "bytes": _short(offer.bytes),
        "loss": quantities.decimal(offer.loss),
        "layers": [_row(one, whole) for one in offer.layers],
    }  # fmt: skip


def _row(one: OfferedLayer, whole: float) -> tuple[Any, ...]:
    error = None if one.error is None else _short(one.error)
    return one.form, one.rank, error, one.params, _short(one.flops / whole)


def first_rows(data: ReportData) -> Sequence[tuple[LayerRow, Any, float, float]]:
    """What the page shows before its script runs: (layer, what is offered for it, share saved of all, of its own)."""
    flops = data.before.get("flops") or 1
    offer = data.offers[nearest(data)]
    rows = []
    for layer, one in zip(data.layers, offer.layers, strict=True):
        before = layer.flops_before or 0
        rows.append(
            (layer, one, (before - one.flops) / flops, max(0.0, (before - one.flops) / before) if before else 0.0)
        )
    return rows


def _short(value: float) -> float:
    return float(f"{value:.5g}")
