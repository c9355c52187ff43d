"""``rankfold advise``: what would pay, in plain words."""

from __future__ import annotations

from enum import StrEnum
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Exclude,
    Json,
    Length,
    MaxDropped,
    ObjectiveName,
    Only,
    Precision,
    PrecisionName,
    Seed,
    Spec,
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import count, percent, print_json, print_table, typed

if TYPE_CHECKING:
    from rankfold.pipeline.advice.look import Advice


class SmallHere(StrEnum):
    """What a look makes small."""

    flops = "flops"
    params = "params"
    bytes = "bytes"


def advise(
    model: Spec,
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    max_drop: MaxDropped = None,
    smallest: Annotated[
        SmallHere, typer.Option(help="What is to be small; params and bytes take from tables that are looked up, too.")
    ] = SmallHere.flops,
    seconds: Annotated[float, typer.Option(min=1, metavar="S", help="About how many seconds to look.")] = 60,
    only: Only = [],  # noqa: B006  # typer copies it
    exclude: Exclude = [],  # noqa: B006
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Look at a model for a minute and say what would pay: how much smaller, at what price, and whether it is faster.

    Nothing is written and nothing is trained; the test split is not opened. Without --max-drop one point of a
    percentage may be lost, or 2 % of another figure.
    """
    from rankfold.cli.choices import chosen_layers, computing, objective_of, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.pipeline import Tell
    from rankfold.pipeline.advice.look import advise as look
    from rankfold.run.progress import Talk

    set_threads(threads)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=True, cut=Cut(length, windows)
        ).to(place)
        where, tell = chosen_layers(loaded.model, only, exclude), Tell(talk.progress, talk.say)
        found = look(
            loaded.model, loaded.needed_data(), seconds=seconds, max_drop=max_drop, by=smallest.value,
            objective=objective_of(objective), where=where, seed=seed, tell=tell,
        )  # fmt: skip
    if as_json:
        print_json({"model": model} | found.to_dict())
        return
    named: list[tuple[str, object]] = [
        ("--weights", weights),
        ("--data", data),
        ("--length", length),
        ("--windows", windows),
    ]
    named += [("--objective", objective), *(("--only", each) for each in only), *(("--exclude", e) for e in exclude)]
    print_advice(found, quote(model), typed(named))


def print_advice(found: Advice, model: str, extra: str) -> None:
    """Sentences, a table of what was tried, and commands."""
    from rankfold.costs import CALLED, shown, speed
    from rankfold.pipeline.advice.words import commands, sentences

    for sentence in sentences(found):
        print(sentence)
    if found.tried:
        print()
        known = any(p.kl is not None for p in found.tried)
        sizes = [kind for kind in CALLED if kind in ("flops", "params", found.by)]
        header = [*(CALLED[kind] for kind in sizes), found.start.name, *(["KL"] if known else [])]
        header += [f"at batch {batch}" for batch in found.latencies]
        whole = [*["100.0 %"] * len(sizes), found.start.text, *(["0"] if known else [])]
        whole += [f"{shown(ms)} ms" for ms in found.latencies.values()]
        rows = [
            [
                *(percent(getattr(p, kind)) for kind in sizes),
                p.figure.text,
                *([f"{p.kl:.3g}"] if p.kl is not None else []),
            ]
            + [speed(p.beside[b], p.latencies[b]) if b in p.latencies else "" for b in found.latencies]
            for p in found.tried
        ]
        print_table(header, [whole, *rows], left=())
    said = list(commands(found, model, extra))
    if said:
        print("\nto go on:")
        for what, line in said:
            print(f"  {line}\n    {what}")
    seen = f"{count(found.samples[0])} samples measured, {count(found.samples[1])} judged"
    print(f"\nThis was a short look ({found.seconds:.0f} s, {seen}): compress measures again, on more samples.")
