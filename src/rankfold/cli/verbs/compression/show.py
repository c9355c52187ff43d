"""``rankfold show``: a plan as a table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.options import Json
from rankfold.cli.printing import by_reason, count, percent, print_json, print_table, short, tensors

if TYPE_CHECKING:
    from rankfold.compress.planning.plan import Plan


def show(
    plan: Annotated[Path, typer.Argument(metavar="PLAN|DIR", help="A plan.json, or a directory that holds one.")],
    as_json: Json = False,
) -> None:
    """Print a plan: which layer becomes what, at which rank, and what it is expected to cost."""
    from rankfold.compress.planning.plan import Plan

    made = Plan.load(plan / "plan.json" if plan.is_dir() else plan)
    if plan.is_dir() and (said := _unfinished(plan)) is not None:
        print(f"note: {said}", file=sys.stderr)
    if as_json:
        print_json(plan_values(made))
    else:
        print_plan(made)


def _unfinished(directory: Path) -> str | None:
    """That the job that wrote a directory has not ended; None where it has, or where there is no saved model."""
    from rankfold.store import StoreError, read_manifest, unfinished

    try:
        return unfinished(directory, read_manifest(directory)["notes"])
    except StoreError:
        return None


def plan_values(made: Plan) -> dict[str, Any]:
    """What ``--json`` prints of a plan: its file, and the forecast for the whole network."""
    import json

    return json.loads(made.to_json()) | {"forecast": made.total.to_dict()}


def print_plan(made: Plan, *, brief: bool = False) -> None:
    """The entries, and, unless ``brief``, the totals and what was left out."""
    rows = [
        (
            entry.site,
            "×".join(map(str, entry.shape)) + (f" ×{entry.groups}" if entry.groups > 1 else ""),
            entry.form.value,
            "" if entry.form.value == "keep" else str(entry.rank),
            "" if entry.form.value == "keep" else f"{entry.predicted_error:.3f}",
            count(entry.params),
            short(entry.flops),
            "; ".join(filter(None, (entry.certificate, entry.note))),
        )
        for entry in made.entries
    ]
    header = ("site", "shape", "form", "rank", "error", "params", "FLOPs", "note")
    print_table(header, rows, left=(0, 1, 2, 7))
    if brief:
        return
    print()
    print(f"asked: {made.asked()}; method {made.method}, ranks {made.rule}")
    for kind, name in (("params", "parameters"), ("flops", "FLOPs"), ("bytes", "bytes")):
        before, after = getattr(made.before, kind), getattr(made.after, kind)
        share, part = f"{percent(after / before)} kept" if before else "", made.kept_of_factorable(kind)
        share += "" if part is None else f", {percent(part)} of the layers that can be factored"
        print(f"{name}: {count(before)} → {count(after)}{f' ({share})' if share else ''}")
    print(f"forecast: {made.total.sentence}")
    if made.edited:
        print("note: edited since: costs and errors above are those before; rankfold evaluate measures what apply made")
    for note in made.notes:
        print(f"note: {note}")
    if made.left_out:
        reasons = "; ".join(f"{names}: {reason}" for names, reason in by_reason(made.left_out))
        print(f"left out: {tensors(len(made.left_out))} ({reasons})")
