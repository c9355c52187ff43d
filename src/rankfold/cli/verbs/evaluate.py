"""``rankfold evaluate``: accuracy, loss, cost and latency of a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.options import DataName, Download, Json, Threads, Weights
from rankfold.cli.printing import count, percent, print_json, print_table


class SplitName(StrEnum):
    test = "test"
    validation = "validation"
    train = "train"


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="A directory that compress, apply or train wrote, or a model.")
    ],
    weights: Weights = None,
    data: DataName = None,
    split: Annotated[SplitName, typer.Option(help="Which part of the data.")] = SplitName.test,
    factory: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="What DIR was made from, if that is code of yours.")
    ] = None,
    download: Download = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy and loss on a split, and parameters, FLOPs, bytes and latency at batch 1."""
    from rankfold.cli.loading import check_is_model, is_saved, open_model, open_saved, set_threads
    from rankfold.cli.trained import is_run, open_run
    from rankfold.pipeline import figures
    from rankfold.run.progress import Talk

    set_threads(threads)
    with Talk() as talk:
        if is_saved(model):
            if weights is not None:
                raise typer.BadParameter("a saved model brings its weights", param_hint="--weights")
            if is_run(Path(model)):
                loaded = open_run(Path(model), factory, data, download, talk)
            else:
                loaded = open_saved(Path(model), factory, data, download, talk, own_data=True)
        else:
            check_is_model(model)
            loaded = open_model(model, weights, data, download, talk, trained=True, own_data=True)
        samples = loaded.needed_data()
        talk.say(f"evaluating {loaded.spec} on {samples.amount(split)} of {samples.name}")
        found = figures({"model": loaded.model}, getattr(samples, split), loaded.needed_example())["model"]
    if as_json:
        print_json(found.to_dict())
        return
    rows = [
        ("accuracy", percent(found.accuracy, 2)),
        ("loss", f"{found.loss:.4f} nats"),
        ("parameters", count(found.params)),
        ("FLOPs", f"{count(found.flops)} a sample"),
        ("bytes", count(found.bytes)),
        ("latency", f"{found.latency_ms:.3f} ms at batch 1"),
    ]
    print_table((loaded.spec, f"{samples.name}, {split}"), rows, left=(0, 1))
