"""``rankfold slice``: from a saved network to a smaller one, without data."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import (
    Budgets,
    DataName,
    DeviceName,
    Download,
    Json,
    ObjectiveName,
    Precision,
    PrecisionName,
    RankMultiple,
    Threads,
)
from rankfold.cli.printing import count, percent, print_json, print_table, short

if TYPE_CHECKING:
    from rankfold.compress.planning.plan import Plan
    from rankfold.objectives import Figure
    from rankfold.store import Stored


_NOTED = ("model", "data", "classes", "input", "objective", "objective_why")


def slice_(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What compress, apply or slice wrote.")],
    budget: Budgets,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="Where to save it; without, only the price is told."),
    ] = None,
    rank_multiple: RankMultiple = 1,
    data: DataName = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure on --data what DIR was saved without, before slicing.")
    ] = False,
    factory: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="What DIR was made from, if that is code of yours.")
    ] = None,
    objective: ObjectiveName = None,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a compressed network smaller still, without data, and say what that is predicted to cost.

    Budgets are fractions of the ORIGINAL network, as in compress. With --data, BatchNorm statistics are corrected
    beside DIR, and the judging figure is measured on the validation split, before and after.
    """
    from dataclasses import replace

    from rankfold.batches import copied
    from rankfold.cli.choices import budgets_of, computing, objective_of, set_threads
    from rankfold.cli.saved import noted_objective, open_saved
    from rankfold.compress.repair.batchnorm import reestimate_
    from rankfold.compress.slicing.bottlenecks import bottlenecks
    from rankfold.compress.slicing.narrowed import SliceError
    from rankfold.pipeline import calibration_part, slice_
    from rankfold.run.progress import Talk
    from rankfold.store import Stored, check_ours, save
    from rankfold.train import choose, evaluate

    if measure and data is None:
        raise typer.BadParameter("needs --data NAME", param_hint="--measure")
    if data is None:
        check_idle("without --data", objective=objective, download=download)
    if out is not None and out.resolve() == directory.resolve():
        raise typer.BadParameter(
            f"{out} holds the larger network, which would be lost: give another directory", param_hint="--out"
        )
    set_threads(threads)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_saved(directory, factory, data, download, talk, own_data=False).to(place)
        stored = loaded.needed_stored()
        if out is not None:
            check_ours(out, stored.model)
        if stored.bottlenecks is None and not measure:
            raise SliceError(
                f"{directory}: it was saved without its bottlenecks, so that it cannot be narrowed yet: measure "
                "them with --measure --data NAME, or run compress again"
            )
        if measure:
            part = calibration_part(loaded.needed_data().train, 2048, 0)
            known = bottlenecks(stored.model, part, progress=talk.progress)
            stored = Stored(stored.model, stored.plan, stored.notes, known)
        before = copied(stored.model)
        sliced = slice_(stored, budgets_of(budget, rank_multiple), example=loaded.example)
        judged: dict[str, Figure] = {}
        corrected = ""
        inside = sliced.bottlenecks
        if loaded.data is not None:
            part = calibration_part(loaded.data.train, 2048, 0)
            if reestimate_(sliced.model, before, part):
                corrected = ", BatchNorm corrected"
                if out is not None:  # they belong to the statistics too
                    inside = bottlenecks(sliced.model, part, progress=talk.progress)
        if out is not None:  # before anything that may fail
            notes = {key: value for key, value in stored.notes.items() if key in _NOTED}
            save(sliced.model, sliced.plan, out, notes=notes, bottlenecks=inside)
            talk.say(f"saved in {out}")
        if loaded.data is not None:
            validation = loaded.data.validation
            given, said, noted = objective_of(objective), loaded.data.objective, None
            if given is None and said is None:
                noted = noted_objective(stored, directory, talk)
            chosen = choose(before, validation, given, said=said or noted, role="validation")
            if noted is not None:
                chosen = replace(chosen, why=f"as {directory} was made")
            talk.say(str(chosen))
            for name, network in (("before", before), ("after", sliced.model)):
                judged[name] = evaluate(
                    network, validation, role="validation", objective=chosen.objective, teacher=before
                ).judged
    found = _figures(stored, sliced)
    found |= _judged(judged, found) | {"directory": None if out is None else str(out)}
    if as_json:
        print_json(found)
    else:
        _print(stored.plan, sliced.plan, found, judged, corrected)


def _figures(stored: Stored, sliced: Stored) -> dict[str, Any]:
    from dataclasses import asdict

    from rankfold.compress.slicing.slicing import slice_costs

    plan, made, known = stored.plan, sliced.plan, sliced.bottlenecks
    costs = slice_costs(plan, made)
    change = sum(cost for _, cost in costs.values())
    energy = 0.0 if known is None else known.energy
    return {
        "asked": made.asked(),
        "original": asdict(made.before),
        "from": asdict(plan.after),
        "after": asdict(made.after),
        "layers": [
            {
                "site": entry.site,
                "form": entry.form.value,
                "rank_before": plan[entry.site].rank,
                "rank": entry.rank,
                "error": costs[entry.site][0],
                "change": costs[entry.site][1] / energy if energy else None,
                "params": entry.params,
                "flops": entry.flops,
            }
            for entry in made.changed
            if entry.site in costs
        ],
        "change": change / energy if energy else None,
        "notes": list(made.notes),
    }


def _judged(judged: dict[str, Figure], taken: Collection[str]) -> dict[str, Any]:
    """The judging figure by its name before and after, or by ``validation_`` and that where the name is taken;
    ``accuracy`` is null where nothing was measured."""
    if not judged:
        return {"accuracy": None}
    name = judged["before"].name
    return {f"validation_{name}" if name in taken else name: {stage: each.value for stage, each in judged.items()}}


def _print(plan: Plan, made: Plan, found: dict[str, Any], judged: dict[str, Figure], corrected: str) -> None:
    rows = [
        (
            row["site"],
            row["form"] if plan[row["site"]].form == row["form"] else f"{plan[row['site']].form} → {row['form']}",
            f"{row['rank_before']} → {row['rank']}",
            f"{row['error']:.3f}",
            "" if row["change"] is None else percent(row["change"], 2),
            f"{count(plan[row['site']].params)} → {count(row['params'])}",
            f"{short(plan[row['site']].flops)} → {short(row['flops'])}",
        )
        for row in found["layers"]
    ]
    if rows:
        print_table(("site", "form", "rank", "error", "change", "params", "FLOPs"), rows, left=(0, 1))
    else:
        print("nothing changes: this network is already within the budget")
    print()
    print(f"asked: {made.asked()}, the original network")
    sizes = [
        (name, *(_share(found[stage][kind], made.before, kind) for stage in ("original", "from", "after")))
        for kind, name in (("params", "parameters"), ("flops", "FLOPs"), ("bytes", "bytes"))
    ]
    print_table(("", "original", "before", "after"), sizes)
    if rows and found["change"] is not None:
        print(
            f"predicted change of the outputs: {percent(found['change'], 2)} of their variance, added up over "
            "the layers"
        )
    if judged:
        name, before, after = judged["before"].name, judged["before"].text, judged["after"].text
        print(f"validation {name}: {before} → {after}{corrected}")
    for note in found["notes"]:
        print(f"note: {note}")


def _share(value: int, original: Any, kind: str) -> str:
    whole = getattr(original, kind)
    return f"{count(value)} ({percent(value / whole)})" if whole and value != whole else count(value)
