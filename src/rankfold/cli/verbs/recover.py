"""``rankfold recover``: a matrix of which little is known, from a file of its entries or of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.options import Json, Seed, Threads
from rankfold.cli.printing import count, print_json, print_table

if TYPE_CHECKING:
    from rankfold.cli.talk import Talk
    from rankfold.recover import Triplets


def recover(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Entries: .csv, .parquet, .npz, u.data, ratings.dat. Measurements: .npz."),
    ],
    test: Annotated[Path | None, typer.Option(metavar="FILE", help="Entries to judge the result by, once.")] = None,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B",
            help="low-rank, ratings, compressed-deep-linear, alternating, nuclear, scaled-gd: the best one is taken.",
        ),
    ] = "low-rank,ratings",
    ranks: Annotated[
        str | None,
        typer.Option(metavar="5,10,20", help="Ranks to try; low-rank and nuclear find theirs up to the largest."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts for cross-validation, each held out once.")] = 5,
    columns: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Row, column, value: names of the header, or of the columns in order."),
    ] = None,
    duplicates: Annotated[
        str, typer.Option(metavar="D", help="Of an entry given twice: refuse, mean, last or sum.")
    ] = "refuse",
    top: Annotated[int, typer.Option(min=0, help="Write so many best unseen columns for every row.")] = 0,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where factors, errors and predictions go.")
    ] = Path("recovered"),
    seed: Seed = 0,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Complete a matrix: choose method and rank by cross-validation, fit on all entries, save the factors.

    Entries are lines "row, column, value" with names of any kind; a header may order them otherwise (user, item,
    timestamp, rating), and so may --columns. An .npz
    holds rows, columns, values (and shape), a matrix X with NaN where it is not known,
    scipy's sparse format, or measurements y of ⟨A, X⟩ with their matrices A (count, m, n) or the seed, count and shape
    of Gaussian ones. DIR gets factors.safetensors, recover.json,
    cross-validation.csv and .svg, and with --top the best unseen columns of every row in top.csv.
    """
    from rankfold.cli.loading import set_threads
    from rankfold.cli.talk import Talk
    from rankfold.pipeline.recovery import complete
    from rankfold.recover import METHODS, choices, read_arrays, read_triplets

    wanted = _listed("methods", methods, str)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {unknown[0]!r}: there are {', '.join(METHODS)}")
    if duplicates not in ("refuse", "mean", "last", "sum"):
        raise typer.BadParameter(f"duplicates are refused, or give the mean, the last or the sum, got {duplicates!r}")
    tried = _listed("ranks", ranks, int) if ranks is not None else None
    set_threads(threads)
    with Talk() as talk:
        arrays = read_arrays(file) if file.suffix.lower() == ".npz" else {}
        if "y" in arrays:
            report = _sensed(file, arrays, max(tried) if tried else None, seed, out, talk)
        else:
            named = _listed("columns", columns, str) if columns is not None else None
            entries = read_triplets(file, duplicates=duplicates, columns=named)  # type: ignore[arg-type] # checked above
            judge = None if test is None else read_triplets(test, duplicates="mean", columns=named)
            _about(entries, talk)
            report = complete(
                entries,
                choices(wanted, tried, entries.shape),
                out,
                judge=judge,
                folds=folds,
                seed=seed,
                top=top,
                progress=talk.progress,
            )
    if as_json:
        print_json(report)
        return
    _print(report)


def _about(entries: Triplets, talk: Talk) -> None:
    m, n = entries.shape
    talk.say(f"{count(len(entries))} entries of a {count(m)} × {count(n)} matrix, {len(entries) / (m * n):.2%} of it")
    for remark in entries.remarks:
        talk.say(remark)


def _sensed(file: Path, arrays: dict[str, Any], rank: int | None, seed: int, out: Path, talk: Talk) -> dict[str, Any]:
    from rankfold.pipeline.recovery import sense
    from rankfold.recover import sensed

    try:
        operator, y = sensed(arrays)
        m, n = operator.shape
        talk.say(f"{count(operator.count)} measurements of a {count(m)} × {count(n)} matrix")
        return sense(operator, y, out, rank=rank, seed=seed, progress=talk.progress)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _print(report: dict[str, Any]) -> None:
    rank = report["rank"]
    how = report["how"].removeprefix(f"rank {rank}; ")
    if "tried" in report:
        lines = [(one["choice"], f"{one['error']:.4f}", str(one["rank"])) for one in report["tried"]]
        print_table(("choice", "held-out RMSE", "rank"), lines)
        print(f"\ntaken: {report['chosen']}, root mean square error {report['held_out_error']:.4f} on held-out entries")
        other = report["tried"][0]["rank"]
        more = "" if other == rank else f" (in the table {other}, of the last fold: its fit had fewer entries to go by)"
        print(f"fitted to all {count(report['entries'])} entries: rank {rank}{more}; {how}")
    else:
        error = report["held_out_error"]
        held = "none needed" if error is None else f"{error:.2g}"
        print(f"rank {rank}, {'converged' if report['converged'] else 'NOT converged'}: {how}")
        print(f"relative residual {report['residual']:.2g}; relative held-out error {held}")
    if "test" in report:
        test = report["test"]
        print(
            f"on {count(test['entries'])} test entries: root mean square error {test['error']:.4f}, absolute "
            f"{test['absolute_error']:.4f}; {test['unknown_rows']} rows and {test['unknown_columns']} columns unknown"
        )
    print(f"wrote {report['directory']}")


def _listed(option: str, text: str, kind: type) -> list[Any]:
    try:
        found = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--{option} takes values separated by commas, got {text!r}") from None
    if kind is int and min(found) < 1:
        raise typer.BadParameter(f"--{option}: a rank is at least 1, got {min(found)}")
    return found
