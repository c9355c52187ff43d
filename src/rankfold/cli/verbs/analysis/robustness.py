"""``rankfold robustness``: accuracy under attack, and what each layer amplifies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Json,
    ObjectiveName,
    Seed,
    Threads,
    Weights,
)
from rankfold.cli.printing import count, percent, print_json, print_table
from rankfold.cli.verbs.analysis.evaluate import SplitName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rankfold.cli.loading import Loaded
    from rankfold.pipeline.robustness.study import Robustness
    from rankfold.zoo import Data


def robustness(
    model: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="A directory that compress, apply or train wrote, or a model.")
    ],
    weights: Weights = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="Measure this one too, on the same samples: a directory that compress, apply or train wrote. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    data: DataName = None,
    split: Annotated[SplitName, typer.Option(help="Which part of the data.")] = SplitName.test,
    factory: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="What DIR was made from, if that is code of yours.")
    ] = None,
    objective: ObjectiveName = None,
    linf: Annotated[
        str, typer.Option(metavar="R,…", help="Largest changes of an input, in pixels between 0 and 1; empty: none.")
    ] = "0.03,0.06",
    l2: Annotated[str, typer.Option(metavar="R,…", help="Euclidean norms of the change; empty: none.")] = "0.5,1",
    steps: Annotated[int, typer.Option(min=15, help="Gradient steps of each attack.")] = 20,
    restarts: Annotated[int, typer.Option(min=0, help="Further attacks from random points.")] = 1,
    samples: Annotated[int, typer.Option(min=1, help="Samples that are attacked, drawn from the split.")] = 1000,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where robustness.svg, .csv and .json go.")
    ] = Path("robustness"),
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Attack a classifier by small changes of its inputs (PGD), and measure what each of its layers amplifies.

    Every iterate of every attack counts; no adversarial training took place. Original and compressed networks alike.
    """
    from rankfold.cli.choices import computing, objective_of, set_threads
    from rankfold.cli.saved import is_saved, noted_objective
    from rankfold.cli.trained import open_either
    from rankfold.pipeline.robustness.drawing import check_study, write_robustness
    from rankfold.pipeline.robustness.study import robustness as measured
    from rankfold.run.progress import Talk

    if not any(map(is_saved, (model, *(beside or ())))):
        check_idle("without a DIR that was made from it", model=factory)
    check_study(out)
    cube, sphere = _radii("--linf", linf), _radii("--l2", l2)
    set_threads(threads)
    found = {}
    with Talk() as talk, computing(device, "float32") as place:
        opened = {
            name: open_either(name, weights if name == model else None, factory, data, download, talk)
            for name in dict.fromkeys([model, *(beside or ())])
        }
        known, noted = _one_data(opened), opened[model].stored
        judged = objective_of(objective) or known.objective or noted_objective(noted, model, talk)
        for name, loaded in opened.items():
            talk.say(f"attacking {name} on {known.amount(split)} of {known.name}, at most {samples}")
            found[name] = measured(
                loaded.to(place).model, known.needed(split), linf=cube, l2=sphere,
                steps=steps, restarts=restarts, samples=samples, objective=judged, seed=seed, progress=talk.progress,
            )  # fmt: skip
        files = write_robustness(found, out)
        talk.say(f"wrote {', '.join(map(str, files))}")
    if as_json:
        print_json({"directory": str(out), "networks": {name: each.to_dict() for name, each in found.items()}})
        return
    print_robustness(found)


def _one_data(opened: Mapping[str, Loaded]) -> Data:
    """The data of the first network, on which all are attacked; ``ZooError`` where another has its own."""
    from rankfold.zoo import ZooError

    (first, loaded), *others = opened.items()
    known = loaded.needed_data()
    loaded.needed_example()
    for name, other in others:
        if other.data is not None and other.data.name != known.name:
            raise ZooError(
                f"{name} has the data {other.data.name}, and {first} has {known.name}: say with --data on which data "
                "all of them are attacked"
            )
    return known


def _radii(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(
            f"give radii separated by commas, such as 0.03,0.06; got {text!r}", param_hint=option
        ) from None


def print_robustness(found: Mapping[str, Robustness]) -> None:
    """A column of accuracies for each attack, and a table of layers for each network."""
    first = next(iter(found.values()))
    header = ["network", "parameters", "clean", *(f"{a.norm} {a.radius:g}" for a in first.attacks), "∏σ₁", "∏κ"]
    rows = [
        [
            name, count(each.params), percent(each.clean, 2), *(percent(a.accuracy, 2) for a in each.attacks),
            f"{each.gain:.3g}", f"{each.condition:.3g}",
        ]
        for name, each in found.items()
    ]  # fmt: skip
    print_table(header, rows)
    for name, each in found.items():
        print(f"\n{name}")
        lines = [
            (
                x.name,
                "×".join(map(str, x.shape)),
                str(x.rank),
                f"{x.largest:.3g}",
                f"{x.smallest:.3g}",
                f"{x.condition:.3g}",
            )
            for x in each.layers
        ]
        print_table(("layer", "shape", "rank", "σ₁", "σ_r", "κ"), lines, left=(0, 1))
    print(
        f"\n{first.samples} samples, {first.steps} steps, {1 + first.restarts} ascents each; radii in units "
        f"{first.unit}; no adversarial training is part of this"
    )
    for name, each in found.items():
        for note in each.notes:
            print(f"note: {name}: {note}")
