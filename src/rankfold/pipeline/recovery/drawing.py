"""Pictures of a recovery."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from rankfold.recover import Tried


def candidates_drawn(tried: Sequence[Tried]) -> bytes:
    """Held-out error of every candidate, each fold a dot, as SVG."""
    with rc_context({"svg.hashsalt": "rankfold", "text.parse_math": False}):
        figure = Figure(figsize=(6, 0.5 + 0.35 * len(tried)), layout="constrained")
        axes = figure.subplots()
        for at, one in enumerate(reversed(tried)):
            axes.plot(one.folds, [at] * len(one.folds), ".", color="#6b6b6b")
            axes.plot([one.error], [at], "D", color="#1b6ca8")
        axes.set_yticks(range(len(tried)), [str(one.choice) for one in reversed(tried)])
        axes.set_xlabel("held-out root mean square error")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
