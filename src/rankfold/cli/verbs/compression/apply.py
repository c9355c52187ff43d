"""``rankfold apply``: carry a plan out and save the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Json,
    Length,
    NoSlices,
    ObjectiveName,
    Precision,
    PrecisionName,
    Seed,
    Spec,
    Threads,
    Weights,
    Windows,
)


def apply(
    model: Spec,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json made for this model and these weights.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where to save the model.")],
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    no_slices: NoSlices = False,
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Apply a plan. With --data, BatchNorm statistics are corrected beside the original, and slice will work."""
    from rankfold.cli.choices import computing, objective_of, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.cli.printing import count, percent, print_json
    from rankfold.compress.planning.plan import Plan
    from rankfold.costs import storage
    from rankfold.pipeline import Carrying, carry_out_
    from rankfold.run.disk.files import check_room
    from rankfold.run.progress import Talk
    from rankfold.zoo.pretrained import is_pretrained_name

    if data is None:
        fetched = download and not is_pretrained_name(model)
        check_idle("without --data", objective=objective, no_slices=no_slices, seed=seed, download=fetched)
    set_threads(threads)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=False, cut=Cut(length, windows)
        ).to(place)
        check_room(out, 2 * storage(loaded.model)[1])
        made = Plan.load(plan)  # after the model: its module may register forms and methods that the plan names
        asked = objective_of(objective) or (None if loaded.data is None else loaded.data.objective)
        how = Carrying(loaded.spec, loaded.data, loaded.known_example, asked, not no_slices, seed)
        _, cost = carry_out_(loaded.model, made, out, how, talk.tell)
    removed = {
        "params_removed": 1 - cost.params / made.before.params,
        "flops_removed": 1 - cost.flops / made.before.flops if made.before.flops else 0.0,
    }
    if as_json:
        print_json({"directory": str(out), "params": cost.params, "flops": cost.flops, "bytes": cost.bytes} | removed)
        return
    print(
        f"parameters: {count(made.before.params)} → {count(cost.params)} ({percent(removed['params_removed'])} removed)"
    )
    print(f"FLOPs: {count(made.before.flops)} → {count(cost.flops)} ({percent(removed['flops_removed'])} removed)")
