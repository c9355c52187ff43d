"""``rankfold compress``: the whole job."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.failure import stopped
from rankfold.cli.options import (
    BudgetOf,
    BudgetsOrNone,
    DataName,
    DeviceName,
    Download,
    Exclude,
    Fallen,
    FormNames,
    Json,
    Length,
    Memory,
    MethodOrNone,
    NoCurve,
    NoSlices,
    ObjectiveName,
    OfWhat,
    Only,
    Precision,
    PrecisionName,
    RankMultiple,
    Restart,
    RuleName,
    Samples,
    Seed,
    Smallest,
    Spec,
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import count, loss_text, percent, print_json, print_table

if TYPE_CHECKING:
    from rankfold.pipeline import Figures, Result


class TuneBy(StrEnum):
    """What is trained at once."""

    whole = "whole"
    blocks = "blocks"


def compress(
    model: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where everything is written.")],
    budget: BudgetsOrNone = [],  # noqa: B006  # typer copies it
    max_drop: Fallen = None,
    smallest: Smallest = None,
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    method: MethodOrNone = None,
    of: BudgetOf = OfWhat.model,
    ranks: RuleName = "optimal",
    rank_multiple: RankMultiple = 1,
    forms: FormNames = [],  # noqa: B006
    only: Only = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    finetune_epochs: Annotated[
        int, typer.Option(min=0, metavar="N", help="Epochs of fine-tuning with the original as teacher; 0 for none.")
    ] = 0,
    tune: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help=(
                "Steps of training the factors to the outputs of the original, without labels: of each block, or of "
                "the whole if it is a language model."
            ),
        ),
    ] = 0,
    tune_by: Annotated[
        TuneBy | None,
        typer.Option(
            "--tune-by", help="What --tune trains at once: blocks one after another (takes less memory), or the whole."
        ),
    ] = None,
    samples: Samples = 2048,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            metavar="DIR",
            show_default=False,
            help="An earlier run of the same model and data: what it measured is taken, for another budget.",
        ),
    ] = None,
    memory: Memory = None,
    no_curve: NoCurve = False,
    no_slices: NoSlices = False,
    seed: Seed = 0,
    restart: Restart = False,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Do the whole job: plan, apply, repair, fine-tune, evaluate, save, and write report.html.

    The same command resumes after an interruption. Choices are made on the validation split; the figures are those of
    the test split, and latency_ms is for batch 1 on this machine. With --memory a folder of transformers is read,
    fitted and written block by block, within so much memory, by a method that fits layer after layer.
    """
    from rankfold.cli.choices import budgets_of, chosen_layers, computing, objective_of, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.cli.streaming import print_streamed, streamable, streaming
    from rankfold.compress.methods import method_named
    from rankfold.pipeline import Settings, Tell
    from rankfold.pipeline import compress as run
    from rankfold.report.quantities import bytes_of
    from rankfold.run.disk.pretrained import is_folder
    from rankfold.run.processes.team import first_process
    from rankfold.run.progress import Talk
    from rankfold.sites import Names

    if not budget and max_drop is None:
        raise typer.BadParameter(
            "give a budget (such as --budget flops=0.5), or how far quality may fall (such as --max-drop 0.5)"
        )
    if tune_by is not None and not tune:
        raise typer.BadParameter("--tune-by goes only with --tune N: give the number of steps, such as --tune 64")
    if smallest is not None and max_drop is None:
        raise typer.BadParameter(
            "--smallest goes only with --max-drop: give how far quality may fall, such as --max-drop 0.5"
        )
    if profile is not None and memory is not None:
        raise typer.BadParameter("--profile goes only without --memory, with which layers are fitted one after another")
    budgets = budgets_of(budget, rank_multiple, of.value)
    streamed = memory is not None and is_folder(model)
    how = method or ("sequential" if streamed else "project")
    if not streamed and not method_named(how).needs_data:
        check_idle(f"with --method {how}, which takes no second moments", memory=memory)
    settings = Settings(
        how, ranks, samples, finetune_epochs, not no_curve, seed, model, not no_slices,
        None if memory is None else bytes_of(memory), tune, objective_of(objective), max_drop,
        "flops" if smallest is None else smallest.value, tune_by=None if tune_by is None else tune_by.value,
        profile=profile,
    )  # fmt: skip
    set_threads(threads)
    if streamed:
        streamable(weights, device)
        check_idle(
            "with --memory, where a folder gets neither a curve nor slices", no_curve=no_curve, no_slices=no_slices
        )
        with Talk() as talk, computing(device, precision):
            settings = replace(settings, where=Names(tuple(only), tuple(exclude)), forms=forms or None)
            found = streaming(model, data, budgets, out, settings, download, talk, Cut(length, windows), restart)
        if not first_process():
            return
        if as_json:
            print_json(found.to_dict())
            return
        print_streamed(found)
        print(f"\nmodel: {out}")
        return
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=True, cut=Cut(length, windows)
        ).to(place)
        settings = replace(settings, where=chosen_layers(loaded.model, only, exclude), forms=forms or None)
        tell = Tell(talk.progress, talk.say)
        try:
            result = run(
                loaded.model,
                loaded.needed_data(),
                budgets,
                settings=settings,
                directory=out,
                restart=restart,
                tell=tell,
            )
        except KeyboardInterrupt:
            raise stopped((out / "run").is_dir()) from None  # tidied away where nothing was measured
    if as_json:
        print_json(result.to_dict())
        return
    from rankfold.run.processes.memory import amount

    print_result(result)
    print(f"\nmodel: {out}\nreport: {out / 'report.html'}")
    held = sum(file.stat().st_size for file in (out / "run").rglob("*") if file.is_file())
    print(f"measurements: {out / 'run'} ({amount(held)}), for other budgets (--profile {out}); may be deleted")


def print_result(result: Result) -> None:
    """A table with a column for each stage."""
    from rankfold.costs import shown, speed

    stages: list[tuple[str, Figures]] = [("before", result.before), ("compressed", result.compressed)]
    if result.finetuned is not None:
        stages.append(("fine-tuned", result.finetuned))
    last, first = stages[-1][1], result.before
    judged = first.judged

    def row(name: str, texts: list[str], note: str) -> tuple[str, ...]:
        return (name, *texts, note)

    def removed(after: float, before: float) -> str:
        if not before:
            return ""
        return f"{percent(after / before - 1)} more" if after > before else f"{percent(1 - after / before)} removed"

    rows = [
        row(
            f"{judged.name} ({result.split})",
            [f.judged.text for _, f in stages],
            last.judged.less(first.judged).replace("−", "-"),
        ),
        *(
            row(figure.name, [f.score.figures[index].text for _, f in stages], "")
            for index, figure in enumerate(first.score.figures[1:], 1)
        ),
        row("loss", [loss_text(f.loss) for _, f in stages], ""),
        row("parameters", [count(f.params) for _, f in stages], removed(last.params, first.params)),
        row("FLOPs", [count(f.flops) for _, f in stages], removed(last.flops, first.flops)),
        row("bytes", [count(f.bytes) for _, f in stages], removed(last.bytes, first.bytes)),
    ]
    rows += [
        row(
            f"ms at batch {batch}",
            [shown(f.latencies[batch]) for _, f in stages],
            speed(first.latencies[batch], last.latencies[batch]),
        )
        for batch in first.latencies
    ]
    if first.prefill_ms is not None:
        for name in ("prefill_ms", "decode_ms"):
            told = [getattr(f, name) for _, f in stages]
            known = told[0] and told[-1]
            note = speed(told[0], told[-1]) if known else ""
            rows.append(row(name.replace("_", " "), [shown(ms) if ms else "" for ms in told], note))
    print_table(("", *(name for name, _ in stages), ""), rows, left=(0, len(stages) + 1))
    if result.quality is not None:
        print(f"max drop: {result.quality.sentence}")
    if result.tuning is not None:
        print(f"{'tuned: ' if result.tuning.kept else 'tuning was '}{result.tuning.sentence}")
    if result.forecast is not None:
        print(result.forecast.sentence)
    judged_before = () if result.quality is None else result.quality.notes  # told while they were judged
    for remark in (remark for remark in result.remarks if remark not in judged_before):
        print(f"note: {remark}")
