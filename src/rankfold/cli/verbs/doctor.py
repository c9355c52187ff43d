"""``rankfold doctor``: what is here, what is missing for what, and which form pays in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import DeviceName, Json, Precision, PrecisionName, Threads
from rankfold.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from rankfold.costs.table import LatencyTable
    from rankfold.pipeline.advice.health import Health
    from rankfold.pipeline.advice.paying import Pays


def doctor(
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Also time factored layers beside dense ones, and keep the times; takes two minutes."
        ),
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the times for latency budgets are kept. Default: $RANKFOLD_LATENCY, or the user's cache.",
        ),
    ] = None,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Print versions, threads, memory, devices and data folders, and which extra lacks which package.

    Asks no network. With --latency also the ranks up to which factored layers are faster here; what was measured is
    kept for this machine, these threads and this arithmetic, and latency budgets then time no such layer again.
    """
    import torch

    from rankfold.cli.choices import computing, set_threads
    from rankfold.costs.table import LatencyTable
    from rankfold.pipeline.advice.health import examine
    from rankfold.pipeline.advice.paying import Pays, paying, spots
    from rankfold.run.progress import Talk

    if not latency:
        timed = {"device": device != "cpu", "precision": precision is not PrecisionName.float32}
        check_idle("without --latency", table=table, **timed)
    set_threads(threads)
    rows, kept = list[Pays](), None
    if latency:
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        with Talk() as talk, computing(device, "float32") as place:
            kept = LatencyTable.of(table, place)
            whole = 2 * len([*spots()])
            for row in paying(dtype=dtypes.get(precision.value, torch.float32), device=str(place), table=kept):
                rows.append(row)
                talk.progress(f"timing layers of {row.shape[0]}×{row.shape[1]}, {row.rows} rows", len(rows), whole)
            kept.save()
    found = examine()
    if as_json:
        print_json(found.to_dict() | ({"latency": [row.to_dict() for row in rows]} if latency else {}))
        return
    print_health(found)
    if kept is not None:
        print_paying(rows)
        print_laws(kept)


def print_health(found: Health) -> None:
    """One line for each thing, and a remedy for what is missing."""
    memory = "not told by the system" if found.memory is None else f"{found.memory / 1e9:,.1f} GB free"
    rows = [(name, said) for name, said in found.versions.items()]
    rows += [("system", found.system), ("processors", f"{found.cores}, of which torch uses {found.threads}")]
    rows += [("memory", memory)]
    rows += [("device", name + (f", {size / 1e9:,.1f} GB" if size else "")) for name, size in found.devices]
    rows += [("data folder", str(found.data_folder) if found.data_folder else "RANKFOLD_DATA is not set")]
    rows += [
        (
            name,
            str(path)
            if path
            else "not on this machine: put it into the folder RANKFOLD_DATA, or add --download to a command",
        )
        for name, path in found.data.items()
    ]
    rows += [("cache", str(found.cache))]
    untimed = "none for this machine yet: rankfold doctor --latency measures it"
    rows += [("latency table", str(found.latency_table) if found.latency_table else untimed)]
    for extra, lacking in found.missing.items():
        remedy = f"lacks {', '.join(lacking)}: pip install 'rankfold[{extra}]'" if lacking else "complete"
        rows.append((f"extra {extra}", remedy))
    print_table(("", ""), rows, left=(0, 1))


def print_paying(rows: list[Pays]) -> None:
    """Up to which rank each form is faster than the dense layer."""
    from rankfold.costs import shown

    print("\nUp to this share of its full rank, a linear layer of m×n is faster in this form:")
    lines = []
    for row in rows:
        up_to = "at no rank that was timed" if row.up_to is None else f"{row.up_to:g}"
        size, best = f"{row.shape[0]}×{row.shape[1]}", min(row.ms.values())
        lines.append((size, str(row.rows), row.form, up_to, shown(row.dense_ms), shown(best)))
    print_table(("m×n", "rows", "form", "up to", "dense ms (quartiles)", "least ms (quartiles)"), lines, left=(0, 2, 3))


def print_laws(kept: LatencyTable) -> None:
    """Where the times are, and how far off the law between them is."""
    print(f"\nkept in {kept.file} for {kept.machine}: latency budgets do not time these layers again")
    for kind, how in sorted({(spot.layer, spot.arithmetic) for spot in kept.curves if spot.rows}):
        for form in ("keep", *sorted({form for curves in kept.curves.values() for form in curves} - {"keep"})):
            law = kept.law(kind, form, how)
            if law is not None:
                layer = f"{kind} as it is" if form == "keep" else f"{kind} in the form {form}"
                off = f"{100 * law.error:.0f} % in the median, {100 * law.worst:.0f} % at the ninth decile"
                print(
                    f"{layer}, {how}: at other sizes the time is taken as a + b·weights + c·widths, which is off by "
                    f"{off}"
                )
