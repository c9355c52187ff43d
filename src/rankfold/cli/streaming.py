"""``rankfold compress FOLDER --memory SIZE``: what is typed, and what is printed. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from rankfold.cli.choices import chosen_layers
from rankfold.cli.failure import stopped
from rankfold.cli.loading import Cut, data_named
from rankfold.cli.printing import count, percent, print_table
from rankfold.pipeline import Settings, Streamed, stream
from rankfold.pipeline.streaming import check_streamable
from rankfold.run.progress import Talk
from rankfold.zoo import ZooError


def streamable(weights: Path | None, device: str) -> None:
    """Refuse what a folder that is read block by block cannot have."""
    if weights is not None:
        raise typer.BadParameter("a folder holds its own weights: leave --weights out")
    if device not in ("cpu", "auto"):
        raise typer.BadParameter("with --memory a folder is read block by block on the CPU: leave --device out")


def streaming(
    folder: str,
    data: str | None,
    budgets: Sequence[Any],
    out: Path,
    settings: Settings,
    download: bool,
    talk: Talk,
    cut: Cut,
    restart: bool,
) -> Streamed:
    """The whole job; the data are read as the model reads them, which needs no weights."""
    from rankfold import hub

    check_streamable(settings)
    root = hub.paged(folder)
    known = data_named(data, download, talk, root, cut)
    if known is None:
        raise ZooError(f"{folder}: no data were given: give --data text:FILE, or --data tokens:FILE.npy")
    where: Any = settings.where
    settings = replace(settings, where=chosen_layers(root, where.only, where.exclude))
    memory = settings.memory
    try:
        return stream(folder, known, budgets, out, memory=memory, settings=settings, restart=restart, tell=talk.tell)
    except KeyboardInterrupt:
        raise stopped(True) from None


def print_streamed(found: Streamed) -> None:
    """A table of both networks, and what is to be known of it."""
    before, after = found.plan.before, found.plan.after
    rows: list[tuple[str, ...]] = []
    if found.before is not None and found.after is not None:
        old, new = found.before.judged, found.after.judged
        rows.append((f"{old.name} ({found.split})", old.text, new.text, new.less(old).replace("−", "-")))
        others = zip(found.before.figures[1:], found.after.figures[1:], strict=True)
        rows += [(old.name, old.text, new.text, "") for old, new in others]
    for name, kind in (("parameters", "params"), ("FLOPs", "flops"), ("bytes", "bytes")):
        was, now = getattr(before, kind), getattr(after, kind)
        rows.append((name, count(was), count(now), f"{percent(1 - now / was)} removed" if was else ""))
    print_table(("", "before", "compressed", ""), rows, left=(0, 3))
    print(found.forecast.sentence)
    for remark in found.remarks:
        print(f"note: {remark}")
