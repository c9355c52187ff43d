"""``rankfold recover``: a matrix of which little is known, from a file of its entries or of measurements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.options import Json, Seed, Threads
from rankfold.cli.printing import count, print_json, print_table

if TYPE_CHECKING:
    from rankfold.recover import Choice, FactorModel, Tried, Triplets
    from rankfold.run.progress import Talk


def recover(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Entries: .csv, .npz, or MovieLens (u.data). Measurements: .npz."),
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
    duplicates: Annotated[
        str, typer.Option(metavar="D", help="Of an entry given twice: refuse, mean or last.")
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
    timestamp, rating). An .npz holds rows, columns, values (and shape), a matrix X with NaN where it is not known,
    scipy's sparse format, or measurements y of ⟨A, X⟩ with their matrices A (count, m, n) or the seed, count and shape
    of Gaussian ones. DIR gets factors.safetensors, recover.json,
    cross-validation.csv and .svg, and with --top the best unseen columns of every row in top.csv.
    """
    from rankfold.cli.loading import set_threads
    from rankfold.recover import METHODS, choices, read_arrays, read_triplets
    from rankfold.run.progress import Talk

    wanted = _listed("methods", methods, str)
    unknown = [name for name in wanted if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {unknown[0]!r}: there are {', '.join(METHODS)}")
    if duplicates not in ("refuse", "mean", "last"):
        raise typer.BadParameter(f"duplicates are refused, or give the mean or the last, got {duplicates!r}")
    tried = _listed("ranks", ranks, int) if ranks is not None else None
    set_threads(threads)
    with Talk() as talk:
        arrays = read_arrays(file) if file.suffix == ".npz" else {}
        if "y" in arrays:
            report = _sensed(file, arrays, max(tried) if tried else None, seed, out, talk)
        else:
            entries = read_triplets(file, duplicates=duplicates)  # type: ignore[arg-type] # checked above
            judge = None if test is None else read_triplets(test, duplicates="mean")
            _about(entries, talk)
            report = _completed(entries, judge, choices(wanted, tried, entries.shape), folds, seed, top, out, talk)
    if as_json:
        print_json(report)
        return
    _print(report)


def _about(entries: Triplets, talk: Talk) -> None:
    m, n = entries.shape
    talk.say(f"{count(len(entries))} entries of a {count(m)} × {count(n)} matrix, {len(entries) / (m * n):.2%} of it")
    for remark in entries.remarks:
        talk.say(remark)


def _completed(
    entries: Triplets,
    judge: Triplets | None,
    candidates: list[Choice],
    folds: int,
    seed: int,
    top: int,
    out: Path,
    talk: Talk,
) -> dict[str, Any]:
    from rankfold.recover import cross_validate, fit
    from rankfold.run.files import write_atomically

    tried = cross_validate(entries, candidates, folds=folds, seed=seed, progress=talk.progress)
    best = tried[0]
    model, rank, remark = fit(entries, best.choice, seed=seed, progress=talk.progress)
    report: dict[str, Any] = {
        "entries": len(entries),
        "shape": list(entries.shape),
        "remarks": list(entries.remarks),
        "chosen": str(best.choice),
        "method": best.choice.method,
        "rank": rank,
        "held_out_error": best.error,
        "how": remark,
        "tried": [
            {"choice": str(one.choice), "error": one.error, "folds": list(one.folds), "rank": one.rank} for one in tried
        ],
        "seed": seed,
    }
    if judge is not None:
        rows, columns = judge.numbered(entries.row_names, entries.column_names)
        missed = model.at(rows, columns) - judge.values
        report["test"] = {
            "entries": len(judge),
            "error": math.sqrt(float((missed**2).mean())),
            "absolute_error": float(abs(missed).mean()),
            "unknown_rows": len(set(judge.rows[rows < 0])),
            "unknown_columns": len(set(judge.columns[columns < 0])),
        }
    write_atomically(out / "factors.safetensors", model.to_bytes())
    table = "choice,error,rank\n" + "".join(f'"{one.choice}",{one.error:.6g},{one.rank}\n' for one in tried)
    write_atomically(out / "cross-validation.csv", table.encode())
    write_atomically(out / "cross-validation.svg", _drawn(tried))
    if top:
        write_atomically(out / "top.csv", _best(model, entries, top).encode())
    _save_report(report, out)
    return report


def _sensed(file: Path, arrays: dict[str, Any], rank: int | None, seed: int, out: Path, talk: Talk) -> dict[str, Any]:
    import torch

    from rankfold.recover import LowRank, sensed
    from rankfold.run.container import packed
    from rankfold.run.files import write_atomically

    try:
        operator, y = sensed(arrays)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    m, n = operator.shape
    talk.say(f"{count(operator.count)} measurements of a {count(m)} × {count(n)} matrix")
    try:
        found = LowRank(rank, random_state=seed, progress=talk.progress).fit(operator, y)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    tensors = {"left": torch.tensor(found.left_), "right": torch.tensor(found.right_)}
    write_atomically(out / "factors.safetensors", packed(tensors))
    report = {
        "measurements": operator.count,
        "shape": [m, n],
        "method": "low-rank",
        "rank": found.rank_,
        "residual": found.training_error_,
        "held_out_error": None if math.isnan(found.validation_error_) else found.validation_error_,
        "converged": found.converged_,
        "how": found.reason_,
        "singular_values": [float(value) for value in found.singular_values_],
        "seed": seed,
    }
    _save_report(report, out)
    return report


def _save_report(report: dict[str, Any], out: Path) -> None:
    import json

    from rankfold.run.files import write_atomically

    report["directory"] = str(out)
    write_atomically(out / "recover.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def _best(model: FactorModel, entries: Triplets, top: int) -> str:
    """The ``top`` best columns of each row that it has no entry for, as CSV."""
    import csv
    import io

    seen: dict[int, list[int]] = {}
    for row, column in zip(entries.rows.tolist(), entries.columns.tolist(), strict=True):
        seen.setdefault(row, []).append(column)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "column", "predicted"))
    for row, name in enumerate(entries.row_names):
        writer.writerows((name, column, f"{value:.4g}") for column, value in model.top(name, top, seen.get(row, [])))
    return text.getvalue()


def _drawn(tried: list[Tried]) -> bytes:
    """Held-out error of every candidate, each fold a dot."""
    import io

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "rankfold", "text.parse_math": False}):
        figure = Figure(figsize=(6, 0.5 + 0.35 * len(tried)), layout="constrained")
        axes = figure.subplots()
        for at, one in enumerate(reversed(tried)):
            axes.plot(one.folds, [at] * len(one.folds), ".", color="#6b6b6b")
            axes.plot([one.error], [at], "D", color="#1b6ca8")
        axes.set_yticks(range(len(tried)), [str(one.choice) for one in reversed(tried)])
        axes.set_xlabel("held-out root mean square error")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
