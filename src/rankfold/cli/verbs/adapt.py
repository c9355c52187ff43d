"""``rankfold adapt``: a trained network adapted to other data by updates of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.failure import Interrupted
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Exclude,
    Json,
    Length,
    ObjectiveName,
    Only,
    Restart,
    Seed,
    Spec,
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import count, loss_text, percent, print_json, print_table

if TYPE_CHECKING:
    from rankfold.pipeline.adaptation import Adapted

METHODS = ("lora", "rslora", "dora", "adalora", "deep-lora", "geolora", "debora")


def _method(name: str) -> str:
    if name not in METHODS:
        raise typer.BadParameter(f"no method named {name!r}; there are {', '.join(METHODS)}")
    return name


def _params(text: str) -> str:
    from rankfold.adapt.extraction.budget import asked

    try:
        if asked(text).params is None:
            raise ValueError("the budget of an adapter that is trained is params=0.01 (of the model; above 1 a count)")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def adapt(
    model: Spec,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the adapter goes, in PEFT's format.")],
    data: DataName = None,
    weights: Weights = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="M",
            help="lora, rslora, dora, adalora (PEFT's), deep-lora, geolora or debora.",
            callback=_method,
        ),
    ] = "lora",
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            metavar="params=X",
            help="Numbers of the adapter: a share of the model, above 1 a count.",
            callback=_params,
        ),
    ] = "params=0.01",
    radius: Annotated[float, typer.Option(help="debora: what the gains of all layers may add up to.")] = 8.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training split.")] = 3,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="The peak of Adam's rate.")] = 1e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of one step.")] = 32,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    only: Only = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    merge: Annotated[bool, typer.Option("--merge", help="Also write the adapted weights, to DIR/merged.")] = False,
    seed: Seed = 0,
    restart: Restart = False,
    download: Download = False,
    device: DeviceName = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Adapt a trained network to data by updates of low rank, and save an ordinary LoRA adapter.

    Every method ends with at most --budget numbers. The same command goes on after an interruption. Epochs are chosen
    on the validation split; the figures are those of the test split.
    """
    from rankfold.adapt.extraction.budget import asked
    from rankfold.cli.loading import Cut, chosen_layers, computing, objective_of, open_model, set_threads
    from rankfold.pipeline.adaptation import AdaptSettings
    from rankfold.pipeline.adaptation import adapt as run
    from rankfold.run.progress import Talk

    set_threads(threads)
    with Talk() as talk, computing(device, "float32") as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=True, cut=Cut(length, windows)
        ).to(place)  # fmt: skip
        settings = AdaptSettings(
            method, asked(budget).params or 0.01, radius, epochs, batch_size, learning_rate, seed, model,
            chosen_layers(loaded.model, only, exclude),
        )  # fmt: skip
        try:
            found = run(
                loaded.model, loaded.needed_data(), settings, out, objective=objective_of(objective), merge=merge,
                restart=restart, tell=talk.tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("The same command goes on from the last whole epoch.") from None
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)


def _print(found: Adapted) -> None:
    rows = [
        (layer.name, f"{layer.shape[0]}×{layer.shape[1]}", str(layer.rank), count(layer.params), percent(layer.share))
        for layer in found.extraction.layers
    ]
    print_table(("layer", "size", "rank", "numbers", "of the update"), rows)
    size = found.extraction
    print(f"\n{count(size.params)} numbers, {percent(size.params / size.model_params, 2)} of the model")
    judged = found.before.judged
    print(f"{judged.name} ({found.split}): {judged.text} before, {found.after.judged.text} adapted")
    print(f"loss ({found.split}): {loss_text(found.before.loss)} before, {loss_text(found.after.loss)} adapted")
    print(f"\nadapter: {found.directory}")
