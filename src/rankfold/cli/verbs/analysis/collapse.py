"""``rankfold collapse``: why the layers of a network are as low-rank as they are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.checks import check_is_page
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Json,
    ObjectiveName,
    Precision,
    PrecisionName,
    Samples,
    Seed,
    Spec,
    Threads,
    Weights,
)
from rankfold.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from rankfold.pipeline.collapse.study import CollapseReport


def collapse(
    model: Spec,
    weights: Weights = None,
    data: DataName = None,
    decay: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help=(
                "Weight decay of the training, coupled as in SGD. Default: estimated from the weights, where they "
                "tell it."
            ),
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="L",
            help=(
                "Loss of the training: cross-entropy, binary-cross-entropy, mean-squared-error (over the outputs, as "
                "of torch) or squared-error (their sum); of targets that are classes against one-hot vectors. "
                "Default: cross-entropy of classes, of numbers mean-squared-error, of 0 and 1 binary-cross-entropy."
            ),
        ),
    ] = None,
    objective: ObjectiveName = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Clusters for k-means. Default: the number of classes, or 10 for targets that are numbers.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where the report goes.")] = Path(
        "collapse.html"
    ),
    samples: Samples = 2048,
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure ranks, clusters, neural collapse and the bounds between them, layer by layer; write one HTML report.

    Says which layers are low-rank, which bound explains it, and at which weight decay the others would be.
    """
    from rankfold.cli.choices import computing, objective_of, set_threads
    from rankfold.cli.loading import open_model
    from rankfold.pipeline import calibration_part, samples_of
    from rankfold.pipeline.collapse.page import write_collapse
    from rankfold.pipeline.collapse.study import collapse_report
    from rankfold.run.progress import Talk

    set_threads(threads)
    check_is_page(out, "collapse.html")
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(model, weights, data, download, talk, trained=False, own_data=True).to(place)
        if loaded.drawn:
            talk.say(f"{model} was given without --weights, so that its weights are random and nothing has collapsed")
        known = loaded.needed_data()
        part = calibration_part(known.train, samples, seed)
        loaded.needed_example()
        found = collapse_report(
            loaded.model,
            part,
            decay=decay,
            loss=loss,
            samples=samples_of(part, samples),
            clusters=clusters,
            seed=seed,
            objective=objective_of(objective) or known.objective,
            progress=talk.progress,
        )
        talk.say(f"wrote {write_collapse(found, model, known.name, out)}")
    if as_json:
        print_json({"model": model, "report": str(out)} | found.to_dict())
        return
    print_collapse(found)


def print_collapse(found: CollapseReport) -> None:
    """The table of layers, and the paragraph."""
    header = [
        "layer",
        "shape",
        "stable",
        f"beyond {found.classes}",
        "class var.",
        "best",
        "NC1",
        "NC4",
        "bound",
        "distance",
    ]
    lines = []
    for layer in found.layers:
        values = layer.to_dict(found.classes)
        clusters, bound = layer.clusters, layer.bound
        view = "whole" if clusters is None or "whole" in clusters.classes else "position"
        whole = None if clusters is None else clusters.classes.get(view)
        best = None if clusters is None else clusters.best.get(view)
        lines.append(
            [
                layer.site.name,
                "×".join(map(str, layer.site.shape)),
                f"{values['stable_rank']:.1f}",
                f"{values['relative_distance_to_k']:.1%}",
                _shown(None if whole is None else whole.normalised, ".1%"),
                _shown(None if best is None else best.normalised, ".1%"),
                _shown(None if clusters is None else clusters.collapse.nc1, ".3g"),
                _shown(None if clusters is None else clusters.collapse.nc4, ".1%"),
                "–" if bound is None else f"{bound.bound:.3g}{' vacuous' if bound.vacuous else ''}",
                "–" if bound is None else f"{bound.distance:.3g}",
            ]
        )
    print_table(header, lines, left=(0, 1))
    print(f"\n{found.conclusion()}")
    for note in found.notes:
        print(f"note: {note}")


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)
