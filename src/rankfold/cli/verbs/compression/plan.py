"""``rankfold plan``: decide what becomes of every matrix within a budget, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.checks import check_idle, check_is_file
from rankfold.cli.failure import stopped
from rankfold.cli.options import (
    BudgetOf,
    Budgets,
    DataName,
    DeviceName,
    Download,
    Exclude,
    FormNames,
    Json,
    Length,
    Memory,
    MethodName,
    ObjectiveName,
    OfWhat,
    Only,
    Precision,
    PrecisionName,
    RankMultiple,
    RuleName,
    Samples,
    Seed,
    Spec,
    Threads,
    Weights,
    Windows,
)

if TYPE_CHECKING:
    from rankfold.cli.loading import Loaded
    from rankfold.compress.planning.profile import Calibration
    from rankfold.objectives import Objective
    from rankfold.run.progress import Talk


def plan(
    model: Spec,
    budget: Budgets,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where to write the plan (JSON).")],
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    method: MethodName = "project",
    of: BudgetOf = OfWhat.model,
    ranks: RuleName = "optimal",
    rank_multiple: RankMultiple = 1,
    forms: FormNames = [],  # noqa: B006
    only: Only = [],  # noqa: B006  # typer copies it
    exclude: Exclude = [],  # noqa: B006
    samples: Samples = 2048,
    memory: Memory = None,
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Decide the rank of every layer within a budget. The plan can be read, edited and applied; nothing changes yet.

    Methods that fit layer after layer resume after an interruption, and share the data under
    torchrun --nproc-per-node=N -m rankfold.
    """
    import shutil

    from rankfold.cli.choices import budgets_of, chosen_layers, computing, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.cli.printing import print_json
    from rankfold.cli.verbs.compression.show import plan_values, print_plan
    from rankfold.compress.methods import method_named
    from rankfold.compress.methods.method import fits_layers
    from rankfold.compress.planning.plan import Plan
    from rankfold.compress.planning.planner import plan as make_plan
    from rankfold.pipeline import memory_sentence
    from rankfold.report.quantities import bytes_of
    from rankfold.run.disk.foreign import check_replaceable
    from rankfold.run.processes.team import first_process
    from rankfold.run.progress import Talk
    from rankfold.zoo import model_names

    check_is_file(out, "plan.json")
    check_replaceable(out.parent, [out.name], lambda held: "entries" in held, out.name)
    if not method_named(method).needs_data:
        check_idle(f"with --method {method}, which takes no second moments", memory=memory)
        if data is None and model not in model_names():  # built-in networks know their data
            check_idle("without --data", samples=samples != 2048, seed=seed)
    budgets = budgets_of(budget, rank_multiple, of.value)
    set_threads(threads)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=True, cut=Cut(length, windows)
        ).to(place)
        where = chosen_layers(loaded.model, only, exclude)
        limit = None if memory is None else bytes_of(memory)
        first = first_process()
        part, meaning, calibration = _observed(loaded, method, objective, samples, seed, limit, talk)
        if first and fits_layers(method_named(method)):
            talk.say(memory_sentence(loaded.model, limit, where))
        partial = out.with_name(f"{out.name}.partial")
        try:
            made = make_plan(
                loaded.model,
                budgets,
                method,
                part,
                rule=ranks,
                objective=meaning,
                example=loaded.needed_example(),
                where=where,
                forms=forms or None,
                calibration=calibration,
                directory=partial,
                progress=talk.progress if first else None,
            )
        except KeyboardInterrupt:
            raise stopped(any(path.is_dir() for path in partial.glob("*"))) from None
        if not first:
            return
        made.save(out)
        shutil.rmtree(partial, ignore_errors=True)
        talk.say(f"wrote {out}")
    if as_json:
        print_json(plan_values(Plan.from_json(out.read_text(encoding="utf-8"))))
    else:
        print_plan(made)


def _observed(
    loaded: Loaded, method: str, objective: str | None, samples: int, seed: int, memory: int | None, talk: Talk
) -> tuple[Any, Objective | None, Calibration]:
    """Samples, what the outputs mean, and how both are measured; without data, which some methods do not need, nothing
    is."""
    from rankfold.cli.choices import objective_of
    from rankfold.compress.methods import method_named
    from rankfold.compress.planning.profile import Calibration
    from rankfold.pipeline import calibration_part, samples_of
    from rankfold.run.processes.team import first_process, world_size
    from rankfold.train import choose

    asked = objective_of(objective)
    if loaded.data is None and not method_named(method).needs_data:
        return None, asked, Calibration(memory=memory)
    known = loaded.needed_data()
    part = calibration_part(known.train, samples, seed)
    chosen = choose(loaded.model, part, asked, said=known.objective)
    if first_process():
        talk.say(str(chosen))
    number = samples_of(part, samples)
    return (
        part, chosen.objective, Calibration(number, name=known.name, memory=memory, distributed=world_size() > 1)
    )  # fmt: skip
