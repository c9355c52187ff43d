"""``rankfold doctor``: what is here, what is missing for what, and which form pays in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.options import DeviceName, Json, Precision, PrecisionName, Threads
from rankfold.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from rankfold.pipeline.health import Health, Pays


def doctor(
    latency: Annotated[
        bool,
        typer.Option("--latency", help="Also time factored layers beside dense ones, about a minute: which form pays?"),
    ] = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Print versions, threads, memory, devices and data folders, and which extra lacks which package.

    Asks no network. With --latency also the ranks up to which factored layers are faster here.
    """
    import torch

    from rankfold.cli.loading import computing, set_threads
    from rankfold.pipeline.health import BATCHES, FRACTIONS, WIDTHS, Pays, examine, paying
    from rankfold.run.progress import Talk

    set_threads(threads)
    found, rows = examine(), list[Pays]()
    if latency:
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        with Talk() as talk, computing(device, "float32") as place:
            whole = 2 * len(WIDTHS) * len(BATCHES)
            for row in paying(dtype=dtypes.get(precision.value, torch.float32), device=str(place)):
                rows.append(row)
                talk.progress(f"timing {len(FRACTIONS)} ranks of width {row.width}", len(rows), whole)
    if as_json:
        print_json(found.to_dict() | ({"latency": [row.to_dict() for row in rows]} if latency else {}))
        return
    print_health(found)
    if rows:
        print_paying(rows)


def print_health(found: Health) -> None:
    """One line for each thing, and a remedy for what is missing."""
    memory = "not told by the system" if found.memory is None else f"{found.memory / 1e9:,.1f} GB free"
    rows = [(name, said) for name, said in found.versions.items()]
    rows += [("system", found.system), ("processors", f"{found.cores}, of which torch uses {found.threads}")]
    rows += [("memory", memory)]
    rows += [("device", name + (f", {size / 1e9:,.1f} GB" if size else "")) for name, size in found.devices]
    rows += [("data folder", str(found.data_folder) if found.data_folder else "RANKFOLD_DATA is not set")]
    rows += [
        (name, str(path) if path else "not here: put it into RANKFOLD_DATA, or add --download to a command")
        for name, path in found.data.items()
    ]
    rows += [("cache", str(found.cache))]
    for extra, lacking in found.missing.items():
        remedy = f"lacks {', '.join(lacking)}: pip install 'rankfold[{extra}]'" if lacking else "complete"
        rows.append((f"extra {extra}", remedy))
    print_table(("", ""), rows, left=(0, 1))


def print_paying(rows: list[Pays]) -> None:
    """Up to which rank each form is faster than the dense layer."""
    print("\nA square linear layer is faster in this form up to this part of its full rank:")
    lines = []
    for row in rows:
        up_to = "at no rank that was timed" if row.up_to is None else f"{row.up_to:g}"
        best = min(row.ms.values())
        lines.append((str(row.width), str(row.batch), row.form, up_to, f"{row.dense_ms:.3f}", f"{best:.3f}"))
    print_table(("width", "batch", "form", "up to", "dense ms", "least ms"), lines, left=(2, 3))
