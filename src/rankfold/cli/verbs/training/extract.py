"""``rankfold extract``: an adapter from two checkpoints, or from adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Exclude,
    Json,
    Length,
    ObjectiveName,
    Only,
    Seed,
    Threads,
    Windows,
)
from rankfold.cli.printing import count, percent, print_json, print_table

if TYPE_CHECKING:
    from rankfold.adapt import Extraction
    from rankfold.run.progress import Talk

_SHOWN = 12  # tensors that are left out and told by name


def _budgets(texts: list[str]) -> list[str]:
    from rankfold.adapt.extraction.budget import asked

    try:
        asked(texts)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return texts


def extract(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE TUNED | ADAPTER…",
            help="Two checkpoints (folders of transformers, or files with --model), or folders of LoRA adapters.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the adapter goes, in PEFT's format.")],
    budget: Annotated[
        list[str],
        typer.Option(
            "--budget",
            metavar="KIND=VALUE",
            help=(
                "rank=16 (of each layer, at most), params=0.1 (a share of the model, or of what the adapters store; "
                "a count if above 1), error=0.1 (relative, of all updates together). May be given several times; "
                "all must hold."
            ),
            callback=_budgets,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="For files of weights: the network that they belong to.",
            show_default=False,
        ),
    ] = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    objective: ObjectiveName = None,
    samples: Annotated[int, typer.Option(min=1, help="With --data: samples of its training split.")] = 512,
    tune: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="With --data: steps of training to the outputs of the tuned model, without labels."
        ),
    ] = 0,
    only: Only = [],  # noqa: B006
    exclude: Exclude = [],  # noqa: B006
    whole: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Modules, such as '*norm', whose tuned tensors are stored whole, with those tied to them.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    weight: Annotated[
        list[float],
        typer.Option(
            metavar="W", help="Of adapters: the factor that each is multiplied by; 1 by default.", show_default=False
        ),
    ] = [],  # noqa: B006
    uniform: Annotated[
        bool,
        typer.Option(
            "--uniform",
            help="Give all layers one rank (by zeros) and one alpha, for programs that read only such adapters.",
        ),
    ] = False,
    seed: Seed = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Replace an adapter that is already there.")] = False,
    download: Download = False,
    device: DeviceName = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Make a LoRA adapter of what a checkpoint has learnt beyond its base, or one smaller adapter of several.

    Checkpoints are read one layer at a time. With --data the error that counts is that of the tuned model's outputs.
    What the adapter leaves out is told layer by layer.
    """
    from rankfold.adapt import combine, is_adapter
    from rankfold.adapt.peft_format import check_adapter_place
    from rankfold.cli.choices import patterns_as_typed, set_threads
    from rankfold.run.progress import Talk

    set_threads(threads)
    check_adapter_place(out)
    if not restart and is_adapter(str(out)):
        raise typer.BadParameter(
            f"{out} already holds an adapter: give another folder, or --restart to replace it", param_hint="--out"
        )
    adapters = [is_adapter(source) for source in sources]
    if any(adapters) and not all(adapters):
        plain = sources[adapters.index(False)]
        raise typer.BadParameter(
            f"{plain} is not an adapter, and others that were given are: give two checkpoints, or only adapters"
        )
    if not any(adapters) and len(sources) != 2:
        raise typer.BadParameter("give two checkpoints, BASE and TUNED, or one or more adapters")
    if all(adapters):
        check_idle(
            "where one adapter is made of adapters", model=model, data=data, length=length, windows=windows,
            objective=objective, samples=samples != 512, tune=tune, only=only, exclude=exclude, whole=whole, seed=seed,
            download=download, device=device != "cpu",
        )  # fmt: skip
    else:
        check_idle("where an adapter is made of two checkpoints", weight=weight)
    with Talk() as talk:
        if all(adapters):
            found = combine(sources, budget, weights=weight or None)
        else:
            chosen = _Chosen(model, data, (length, windows), objective, samples, tune, (only, exclude), whole, seed)
            with patterns_as_typed():
                found = _of_checkpoints(sources, budget, chosen, download, device, talk)
    found.save(out, uniform=uniform)
    if as_json:
        print_json(found.to_dict() | {"directory": str(out)})
        return
    _print(found)
    print(f"\nadapter: {out}")


class _Chosen(NamedTuple):
    """What was typed about checkpoints beside their places."""

    spec: str | None
    data: str | None
    cut: tuple[int | None, int | None]
    objective: str | None
    samples: int
    tune: int
    names: tuple[list[str], list[str]]
    whole: list[str]
    seed: int


def _of_checkpoints(
    sources: list[str], budget: list[str], how: _Chosen, download: bool, device: str, talk: Talk
) -> Extraction:
    from rankfold.adapt import extract as run
    from rankfold.cli.choices import computing, objective_of
    from rankfold.cli.loading import Cut, open_model
    from rankfold.pipeline import calibration_part
    from rankfold.run.disk.pretrained import is_folder
    from rankfold.sites.wish import Names
    from rankfold.zoo import resolve

    base, tuned = sources
    where = Names(*how.names) if any(how.names) else None
    network = None if how.spec is None else resolve(how.spec, download=download).model
    if how.data is None:
        if how.tune:
            raise typer.BadParameter("needs --data NAME", param_hint="--tune")
        check_idle(
            "without --data NAME", length=how.cut[0], windows=how.cut[1], objective=how.objective,
            samples=how.samples != 512, seed=how.seed, device=device != "cpu", download=download and network is None,
        )  # fmt: skip
        return run(base, tuned, budget, model=network, where=where, whole=how.whole, progress=talk.progress)
    spec, file = (tuned, None) if is_folder(tuned) else (how.spec, Path(tuned))
    if spec is None:
        raise typer.BadParameter(
            "for files of weights --data also needs --model MODEL, the network that they belong to",
            param_hint="--model",
        )
    with computing(device, "float32") as place:
        loaded = open_model(
            spec, file, how.data, download, talk, trained=True, own_data=False, cut=Cut(*how.cut)
        ).to(place)  # fmt: skip
        known = loaded.needed_data()
        part = calibration_part(known.train, how.samples, how.seed)
        return run(
            base, loaded.model, budget, model=network, data=part,
            objective=objective_of(how.objective) or known.objective, samples=how.samples, where=where,
            whole=how.whole, tune=how.tune, progress=talk.progress,
        )  # fmt: skip


def _print(found: Extraction) -> None:
    rows = [
        (layer.name, f"{layer.shape[0]}×{layer.shape[1]}", str(layer.rank), count(layer.params), percent(layer.share),
         f"{layer.error:.3f}")
        for layer in found.layers
    ]  # fmt: skip
    print_table(("layer", "size", "rank", "numbers", "of the update", "error"), rows)
    of = f" ({percent(found.params / found.model_params, 2)} of the model)" if found.model_params else ""
    print(f"\nasked: {found.budget}; {count(found.params)} numbers{of}")
    norm = "of what they change in the outputs" if found.norm == "outputs" else "in the updates that it holds together"
    print(f"error: {found.error:.4g}, relative, {norm}")
    if found.tuned is not None:
        way = found.tuned
        print(
            f"tuned: on held-out samples the answers were off by {way.before:.4g} before and are by {way.after:.4g} "
            f"now ({found.unit})"
        )
    if found.adapter.whole:
        print(f"kept whole: {', '.join(sorted(found.adapter.whole))}")
    for item in found.left_out[:_SHOWN]:
        told = "" if item.change is None else f", changed by {percent(item.change, 2)}"
        told += (
            f", {percent(item.moved / found.moved)} of the whole squared change"
            if item.moved > 5e-4 * found.moved
            else ""
        )
        print(f"left out: {item.name} ({item.why}){told}")
    if len(found.left_out) > _SHOWN:
        print(f"left out: {len(found.left_out) - _SHOWN} more, see extraction.json")
    for note in found.notes:
        print(f"note: {note}")
