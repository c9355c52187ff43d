"""``rankfold evaluate``: quality, cost and latency of a model."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from math import isfinite
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
    ObjectiveName,
    Precision,
    PrecisionName,
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import count, loss_text, print_json, print_table


class SplitName(StrEnum):
    test = "test"
    validation = "validation"
    train = "train"


class TargetName(StrEnum):
    """What runs the model while it is timed."""

    eager = "eager"
    compile = "compile"
    onnxruntime = "onnxruntime"


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="A directory that compress, apply or train wrote, or a model.")
    ],
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    split: Annotated[SplitName, typer.Option(help="Which part of the data.")] = SplitName.test,
    factory: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="The network that DIR was made from, if it is code of yours."),
    ] = None,
    objective: ObjectiveName = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="FILE",
            help="Weights, or the folder, of the network that DIR was made from, to compare with.",
        ),
    ] = None,
    target: Annotated[
        TargetName,
        typer.Option(help="Also time it compiled by torch.compile, or as an ONNX graph, beside --original."),
    ] = TargetName.eager,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a batch, for --target.")] = 1,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure how good a model is on a split, and parameters, FLOPs, bytes and latency at batch 1 (and at --batch).

    Without targets, outputs are compared with those of the network that DIR was made from.
    """
    from rankfold.cli.choices import computing, objective_of, set_threads
    from rankfold.cli.loading import Cut
    from rankfold.cli.saved import is_saved, noted_objective, original_of
    from rankfold.cli.trained import open_either
    from rankfold.costs import shown
    from rankfold.export import target_latencies
    from rankfold.export.targets import Target
    from rankfold.pipeline import figures, protocol
    from rankfold.run.progress import Talk
    from rankfold.train import choose
    from rankfold.train import evaluate as score

    if target is TargetName.eager:
        check_idle("without --target compile or onnxruntime", batch=batch != 1)
    if not is_saved(model):
        check_idle("without a DIR that was made from it", model=factory)
    set_threads(threads)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_either(model, weights, factory, data, download, talk, Cut(length, windows))
        loaded, samples = loaded.to(place), loaded.needed_data()
        given, noted = objective_of(objective), None
        if given is None and samples.objective is None:
            noted = noted_objective(loaded.stored, model, talk)
        example, part = loaded.needed_example(), samples.needed(split)
        chosen = choose(loaded.model, part, given, said=samples.objective or noted, role=split)
        if noted is not None:
            chosen = replace(chosen, why=f"as {model} was made")
        talk.say(str(chosen))
        needed = original is not None or not chosen.objective.labelled
        beside = original_of(loaded, original).to(place) if needed else None
        teacher = beside if chosen.objective.compares else None
        talk.say(f"evaluating {loaded.spec} on {samples.amount(split)} of {samples.name}")
        found = figures(
            {"model": loaded.model}, part, example, batches=(batch,), objective=chosen.objective, teacher=teacher
        )["model"]
        beforehand = None
        if beside is not None and chosen.objective.labelled:
            beforehand = score(beside, part, role=split, objective=chosen.objective)
        times = dict[str, float]()
        if target is not TargetName.eager:
            timed = {"model": loaded.model} | ({} if beside is None else {"original": beside})
            talk.say(f"timing on {target.value}")
            on: Target = "compile" if target is TargetName.compile else "onnxruntime"
            times = target_latencies(timed, example, on, batch=batch)
    how = protocol(found.score, part)
    timed_on = {"name": target.value, "batch": batch, "ms": times, "eager_ms": found.latencies.get(batch)}
    told: dict[str, object] = {"target": timed_on} if times else {}
    if as_json:
        told |= {} if beforehand is None else {"original": beforehand.values}
        print_json(found.to_dict() | told | ({"protocol": how} if how else {}))
        return
    was = [] if beforehand is None else [(f"{beforehand.judged.name} of the original", beforehand.judged.text)]
    rows = [
        *((figure.name, figure.text) for figure in found.score.figures),
        *was,
        (
            "loss",
            f"{loss_text(found.loss)}{' nats' if found.judged.name in ('accuracy', 'mean_iou', 'perplexity') else ''}",
        ),
        ("parameters", count(found.params)),
        ("FLOPs", f"{count(found.flops)} a sample"),
        ("bytes", count(found.bytes)),
        *(("latency", f"{shown(ms)} ms at batch {size}") for size, ms in found.latencies.items()),
    ]
    if found.prefill_ms is not None and found.decode_ms is not None:
        rows += [
            ("prefill", f"{shown(found.prefill_ms)} ms for the prompt"),
            ("decode", f"{shown(found.decode_ms)} ms for one token after it"),
        ]
    rows += [
        (f"{target.value}, {name}" if name == "original" else target.value, f"{shown(ms)} ms at batch {batch}")
        for name, ms in times.items()
    ]
    print_table((loaded.spec, f"{samples.name}, {split}"), rows, left=(0, 1))
    if how:
        print(f"note: {how}")
    if not isfinite(found.loss):
        print(f"note: the loss is {found.loss}: outputs of the model are NaN or infinite, for some samples or for all")
