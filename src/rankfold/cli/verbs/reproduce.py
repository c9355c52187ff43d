"""``rankfold reproduce``: a table or figure of a paper, trained and drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import Json, Threads
from rankfold.run.errors import UsageError

_WHEN_NOT = "by default as the experiment has it"


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The name of an experiment, such as lorita-table-1a.")
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list",
            help="List every table and figure of the five documents: run in full, in part, in quick form, or not.",
        ),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Run the smallest form, in seconds, on small data that need no download, to see that it works.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Where runs, tables and figures go; NAME by default."),
    ] = None,
    setting: Annotated[
        str,
        typer.Option(
            metavar="S",
            help=(
                "stable: balanced start and warm-up; relaxed: weight decay that is lowered late; paper: random "
                "start and the paper's rate."
            ),
        ),
    ] = "stable",
    models: Annotated[str | None, typer.Option(metavar="A,B", help=f"Networks, {_WHEN_NOT}.")] = None,
    depths: Annotated[
        str | None, typer.Option(metavar="1,2,3", help=f"Numbers N of composed matrices, {_WHEN_NOT}.")
    ] = None,
    decays: Annotated[str | None, typer.Option(metavar="X,Y", help=f"Grid of weight decays, {_WHEN_NOT}.")] = None,
    seeds: Annotated[str | None, typer.Option(metavar="0,1,2", help=f"Seeds, {_WHEN_NOT}.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Validation accuracy that may be given up for a larger weight decay (0.002 are 0.2 points).",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help=f"Epochs of training, {_WHEN_NOT}.")] = None,
    finetune_epochs: Annotated[int | None, typer.Option(min=0, help="Epochs of fine-tuning after compression.")] = None,
    finetune_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Peak rate of fine-tuning; by default each way has its own.")
    ] = None,
    train_samples: Annotated[int | None, typer.Option(min=1, help="Train on only this many samples.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="P", help=f"float32, bfloat16 or auto, {_WHEN_NOT}.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="lorita-beyond, recovery-layers: use this network, and train none."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="ways-to-low-rank: trials of each way over its own settings.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="lorita-cnn: cifar10, cifar100; lorita-table-4, -5: imagefolder:DIR or parquet:DIR."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Trainings at the same time, of one thread each; -1 for one on each core.")
    ] = 1,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train what a table or figure of a paper needs, write it beside the published numbers, and say where ours differ.

    Resumable: the same command goes on after an interruption. --list says what each NAME shows, and how far it was run.
    """
    if list_:
        check_idle(
            "with --list, which trains nothing", quick=quick, out=out, setting=setting != "stable", models=models,
            depths=depths, decays=decays, seeds=seeds, tolerance=tolerance, epochs=epochs,
            finetune_epochs=finetune_epochs, finetune_rate=finetune_rate, train_samples=train_samples,
            precision=precision, weights=weights, trials=trials, data=data, jobs=jobs != 1,
            threads=threads,
        )  # fmt: skip
        _index(as_json)
        return
    if name is None:
        raise UsageError("give the NAME of an experiment: rankfold reproduce --list has them all")
    from rankfold.cli.choices import set_threads
    from rankfold.cli.failure import Interrupted
    from rankfold.cli.printing import print_json
    from rankfold.papers import reproduce as run
    from rankfold.papers.request import Request
    from rankfold.papers.writing import page, records
    from rankfold.pipeline import Tell
    from rankfold.run.progress import Talk

    set_threads(threads)
    request = Request(
        quick=quick,
        setting=setting,  # type: ignore[arg-type] # checked there
        models=_listed("models", models, str),
        depths=_listed("depths", depths, int),
        decays=_listed("decays", decays, float),
        seeds=_listed("seeds", seeds, int),
        tolerance=tolerance,
        epochs=epochs,
        finetune_epochs=finetune_epochs,
        finetune_rate=finetune_rate,
        train_samples=train_samples,
        precision=precision,  # type: ignore[arg-type] # checked there
        weights=weights,
        trials=trials,
        data=data,
        jobs=jobs,
    )
    place = Path(name) if out is None else out
    with Talk() as talk:
        try:
            outcome = run(name, place, request, Tell(talk.progress, talk.say))
        except KeyboardInterrupt:
            raise Interrupted(f"The same command continues from here: what is finished is in {place}") from None
    if as_json:
        tables = {key: records(table) for key, table in outcome.tables.items()}
        print_json({"experiment": name, "directory": str(place), "remarks": list(outcome.remarks), "tables": tables})
        return
    print(page(outcome), end="")


def _index(as_json: bool) -> None:
    from rankfold.cli.printing import print_json
    from rankfold.papers import EXPERIMENTS, INDEX
    from rankfold.papers.index import listing

    if as_json:
        print_json({"index": INDEX, "experiments": {each.name: each.about for each in EXPERIMENTS.values()}})
        return
    names = "\n".join(f"  {each.name}: {each.about}" for each in EXPERIMENTS.values())
    print(f"{listing(INDEX)}\nExperiments\n{names}")


def _listed(option: str, text: str | None, kind: type) -> tuple | None:
    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{option} takes values separated by commas, got {text!r}") from None
