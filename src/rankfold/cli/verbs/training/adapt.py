"""``rankfold adapt``: a trained network adapted to other data by updates of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.checks import check_idle
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
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import count, loss_text, percent, print_json, print_table

if TYPE_CHECKING:
    from rankfold.cli.loading import Loaded
    from rankfold.objectives import Objective
    from rankfold.pipeline.adaptation import Adapted
    from rankfold.pipeline.restoring import RestoreSettings
    from rankfold.run.progress import Talk


def _method(name: str | None) -> str | None:
    if name is None:
        return None
    from rankfold.adapt.ways import METHODS

    if name not in METHODS:
        raise typer.BadParameter(f"there is no method named {name!r}: the methods are {', '.join(METHODS)}")
    return name


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be a number above 0, got {value:g}")
    return value


def _params(text: str) -> str:
    from rankfold.adapt.extraction.budget import asked

    try:
        if asked(text).params is None:
            raise ValueError(
                "an adapter that is trained has a budget of parameters alone: give --budget params=0.01 (a share of "
                "the model, or a count if above 1)"
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def adapt(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|DIR", help="A model; with --original a directory that compress or apply wrote."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help=(
                "Where the adapter goes, in PEFT's format; with --original, where the compressed model goes, the "
                "adapter merged into it."
            ),
        ),
    ],
    data: DataName = None,
    weights: Weights = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="M",
            help="lora (default), rslora, dora or adalora of PEFT; deep-lora, geolora or debora.",
            callback=_method,
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            metavar="params=X",
            help="Parameters of the adapter: a share of the model, or a count if above 1.",
            callback=_params,
        ),
    ] = "params=0.01",
    radius: Annotated[
        float,
        typer.Option(help="For debora: what the gains of all layers together may add up to.", callback=_positive),
    ] = 8.0,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passes over the training split: 3, or as many as make 500 steps, at most 30.",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Largest learning rate of Adam: 0.01, less for a network of more than 300,000 parameters (0.0013 for "
            "135 million). With --original the share of what is lost that the first step promises to win back: 0.02.",
            callback=_positive,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples of one step: 32, with --original 2 windows of a language model.")
    ] = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    original: Annotated[
        Path | None,
        typer.Option(
            "--original",
            metavar="FILE",
            help=(
                "MODEL is a compressed directory that was made from these weights or this folder: win back what "
                "compressing lost."
            ),
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, with --original.")] = 200,
    factory: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="With --original: the network that MODEL was made from, if it is code of yours.",
        ),
    ] = None,
    only: Only = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    merge: Annotated[bool, typer.Option("--merge", help="Also write the adapted weights, into DIR/merged.")] = False,
    seed: Seed = 0,
    restart: Restart = False,
    download: Download = False,
    device: DeviceName = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Adapt a trained network to data by updates of low rank, and save an ordinary LoRA adapter.

    Every method ends with at most --budget numbers. The same command goes on after an interruption. Epochs are chosen
    on the validation split; the figures are those of the test split, or of validation where there is none.

    With --original the adapter is one of a compressed network's factors, trained without labels to what the original
    gives, and merged into them: ranks and size stay.
    """
    from rankfold.adapt.extraction.budget import asked
    from rankfold.cli.choices import chosen_layers, computing, objective_of, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.cli.saved import is_saved, noted_objective, original_of
    from rankfold.cli.trained import open_either
    from rankfold.compress.repair.natural import SHARE
    from rankfold.pipeline.adaptation import AdaptSettings
    from rankfold.pipeline.adaptation import adapt as run
    from rankfold.pipeline.restoring import RestoreSettings
    from rankfold.run.progress import Talk

    set_threads(threads)
    with Talk() as talk, computing(device, "float32") as place:
        if original is not None:
            if not is_saved(model):
                raise typer.BadParameter(
                    f"goes with a directory that compress or apply wrote, and {model} is none", param_hint="--original"
                )
            check_idle(
                "with --original, where the adapter becomes part of the factors", only=only, exclude=exclude,
                merge=merge, restart=restart, epochs=epochs, radius=radius != 8.0, seed=seed != 0,
            )  # fmt: skip
            if method is not None:
                raise typer.BadParameter(
                    "with --original there is one method, in which the adapter becomes part of the factors: "
                    "leave --method out",
                    param_hint="--method",
                )
            if not original.exists():
                raise typer.BadParameter(
                    f"there is no file or folder {original}: give the weights or the folder that the model was made "
                    "from",
                    param_hint="--original",
                )
            rate = SHARE if learning_rate is None else learning_rate
            wish = RestoreSettings(asked(budget).params or 0.01, steps, rate, batch_size)
            saved = open_either(model, weights, factory, data, download, talk, Cut(length, windows)).to(place)
            judged: Objective | str | None = objective_of(objective)
            if judged is None and saved.needed_data().objective is None:
                judged = noted_objective(saved.stored, model, talk)
            _restore(saved, original_of(saved, original).to(place), wish, out, judged, talk, as_json)
            return
        check_idle("without --original DIR", steps=steps != 200, model=factory)
        check_idle("with another method than debora", radius=radius != 8.0 and method != "debora")
        _check_dense(model)
        loaded = open_model(
            model, weights, data, download, talk, trained=True, own_data=True, cut=Cut(length, windows)
        ).to(place)  # fmt: skip
        settings = AdaptSettings(
            method or "lora", asked(budget).params or 0.01, radius, epochs, 32 if batch_size is None else batch_size,
            learning_rate, seed, model, chosen_layers(loaded.model, only, exclude),
        )  # fmt: skip
        try:
            found = run(
                loaded.model, loaded.needed_data(), settings, out, objective=objective_of(objective), merge=merge,
                restart=restart, tell=talk.tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            raise Interrupted("The same command continues from the last finished epoch.") from None
    if as_json:
        print_json(found.to_dict())
        return
    _print(found)


def _check_dense(model: str) -> None:
    """``ValueError`` for a compressed model, of which no method here trains an adapter to new data."""
    from rankfold.run.disk.pretrained import is_factored
    from rankfold.store import MANIFEST

    if not (is_factored(model) or (Path(model) / MANIFEST).exists()):
        return
    by_peft = "train one with PEFT (get_peft_model(model, rankfold.hub.adapters(LoraConfig(...)))), "
    raise ValueError(
        f"{model}: it is already compressed, and the methods of adapt train adapters of dense networks: "
        f"{by_peft if is_factored(model) else ''}adapt the original and compress what --merge writes, or win back "
        "what compressing lost (--original with what it was made from)"
    )


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


def _restore(
    saved: Loaded, original: Any, wish: RestoreSettings, out: Path, objective: Any, talk: Talk, as_json: bool
) -> None:
    from rankfold.pipeline.restoring import restore

    stored = saved.needed_stored()
    found = restore(stored, original, saved.needed_data(), wish, out, objective=objective, tell=talk.tell)
    if as_json:
        print_json(found.to_dict())
        return
    print_table(("matrix", "rank of its update"), [(name, str(rank)) for name, rank in found.adapter.ranks.items()])
    print(f"\n{count(found.adapter.params)} parameters, merged into the factors: ranks and size stay the same")
    judged = found.before.judged
    print(f"{judged.name} ({found.split}): {judged.text} before, {found.after.judged.text} with the adapter")
    print(
        f"loss ({found.split}): {loss_text(found.before.loss)} before, {loss_text(found.after.loss)} with the adapter"
    )
    print(f"\nmodel: {found.directory}")
