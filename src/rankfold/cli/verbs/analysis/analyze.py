"""``rankfold analyze``: how low-rank every matrix of a model is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.checks import check_idle
from rankfold.cli.options import (
    DataName,
    DeviceName,
    Download,
    Exclude,
    Json,
    Length,
    Only,
    Precision,
    PrecisionName,
    Samples,
    Seed,
    Spec,
    Threads,
    Weights,
    Windows,
)
from rankfold.cli.printing import by_reason, count, print_json, print_table, tensors

if TYPE_CHECKING:
    from rankfold.pipeline import SiteAnalysis
    from rankfold.sites import SiteList


def analyze(
    model: Spec,
    weights: Weights = None,
    data: DataName = None,
    length: Length = None,
    windows: Windows = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Where spectra.svg, sites.csv and sites.json go. Default: spectra."
        ),
    ] = None,
    only: Only = [],  # noqa: B006  # typer copies it
    exclude: Exclude = [],  # noqa: B006
    no_plots: Annotated[bool, typer.Option("--no-plots", help="Only print, and write no files.")] = False,
    samples: Samples = 2048,
    seed: Seed = 0,
    download: Download = False,
    device: DeviceName = "cpu",
    precision: Precision = PrecisionName.float32,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Print the ranks of every matrix, of its weight and with --data of its outputs, and draw the spectra.

    The columns "90 %" and "99 %" are the ranks that keep so much of the energy. Parameters that no row covers are
    listed with the reason.
    """
    from rankfold.cli.choices import chosen_layers, computing, set_threads
    from rankfold.cli.loading import Cut, open_model
    from rankfold.pipeline import analyse, calibration_part, samples_of
    from rankfold.run.progress import Talk
    from rankfold.zoo.pretrained import is_pretrained_name

    if data is None:
        fetched = download and not is_pretrained_name(model)
        check_idle("without --data", samples=samples != 2048, seed=seed, download=fetched)
    if no_plots:
        check_idle("with --no-plots, which writes no files", out=out)
    folder = out or Path("spectra")
    set_threads(threads)
    if not no_plots:
        from rankfold.pipeline.drawing import check_analysis, write_analysis  # brings matplotlib

        check_analysis(folder)
    with Talk() as talk, computing(device, precision) as place:
        loaded = open_model(
            model, weights, data, download, talk, trained=False, own_data=False, cut=Cut(length, windows)
        ).to(place)
        if loaded.drawn:
            talk.say(f"{model} was given without --weights, so that its weights are random: these are their spectra")
        part = None if loaded.data is None else calibration_part(loaded.data.train, samples, seed)
        if part is not None:
            loaded.needed_example()
        where = chosen_layers(loaded.model, only, exclude)
        rows, found = analyse(
            loaded.model, part, samples=samples_of(part, samples), where=where, progress=talk.progress
        )
        if not no_plots:
            for file in write_analysis(rows, found, folder):
                talk.say(f"wrote {file}")
    if as_json:
        print_json(
            {
                "model": model,
                "sites": [row.to_dict() for row in rows],
                "left_out": [{"parameter": name, "reason": reason} for name, reason in found.left_out],
            }
        )
        return
    print_analysis(rows, found)


def print_analysis(rows: tuple[SiteAnalysis, ...], found: SiteList, *, brief: bool = False) -> None:
    """The table of sites, and, unless ``brief``, what was left out."""
    with_data = any(row.output_ranks is not None for row in rows)
    header = ["site", "kind", "shape", "params", "stable", "effective", "numerical", "90 %", "99 %"]
    if with_data:
        header += ["outputs 90 %", "outputs 99 %"]
    lines = []
    for row in rows:
        values = row.to_dict()
        groups = f" ×{row.site.groups}" if row.site.groups > 1 else ""
        line = [
            row.site.name,
            row.site.kind,
            "×".join(map(str, row.site.shape)) + groups,
            count(row.params),
            f"{values['stable_rank']:.1f}",
            f"{values['effective_rank']:.1f}",
            str(values["numerical_rank"]),
            str(values["rank_90"]),
            str(values["rank_99"]),
        ]
        if with_data:
            line += ["–" if rank is None else str(rank) for rank in (row.output_ranks or (None, None))]
        lines.append(line)
    print_table(header, lines, left=(0, 1, 2))
    for row in rows:
        if row.site.note:
            print(f"note: {row.site.name}: {row.site.note}")
    if found.left_out and not brief:
        print(f"\nleft out: {tensors(len(found.left_out))}")
        print_table(("parameters", "reason"), by_reason(found.left_out), left=(0, 1))
