"""``rankfold recover``: a matrix of which little is known, from a file of its entries or of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankfold.cli.checks import check_idle, checked_memory
from rankfold.cli.options import Json, Seed, Threads
from rankfold.cli.printing import count, print_json
from rankfold.cli.recovered import print_ranked, print_recovered, say_read, say_warning
from rankfold.cli.recovering import (
    check_in_files,
    check_kind,
    check_named,
    check_one_candidate,
    check_one_rank,
    check_used,
    check_values,
    listed,
    methods_of,
)

if TYPE_CHECKING:
    from rankfold.run.progress import Talk


def recover(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Entries (.csv, .parquet, .npz, .npy, u.data, ratings.dat) or measurements (.npz)."
        ),
    ],
    test: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Entries that judge the result, once, at the end.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B",
            help=(
                "low-rank and ratings (the default), compressed-deep-linear, alternating, nuclear, scaled-gd; with "
                "--implicit als, regression, neighbours, popularity. The best one is chosen."
            ),
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="5,10,20", help="Ranks to try; low-rank and nuclear find their own, up to the largest of these."
        ),
    ] = None,
    time: Annotated[
        bool,
        typer.Option("--time", help="Also read times, and try ratings that depend on when they were given."),
    ] = False,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows", metavar="FILE", help="Properties of rows (users), with a header; their names in the first column."
        ),
    ] = None,
    items: Annotated[
        Path | None, typer.Option("--items", metavar="FILE", help="Properties of columns (items), in the same form.")
    ] = None,
    predict: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of row and column (and time) to predict; the predictions go into predictions.csv.",
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Parts of the cross-validation, each held out once; 5 by default.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="The columns for row, column and value: their names in the header, or names for all columns in order.",
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header", help="Whether line 1 of the text files is a header; by default what it looks like."
        ),
    ] = None,
    duplicates: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help=(
                "What to do with an entry that is given twice: refuse (the default), mean, last, or sum (the default "
                "with --implicit)."
            ),
        ),
    ] = None,
    implicit: Annotated[
        bool,
        typer.Option(
            "--implicit",
            help="Entries say who did what: rank what each row has not done yet. Two columns, or counts as values.",
        ),
    ] = False,
    at_least: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="With --implicit: values of X and above count as one play each, others as none."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="S", help="With --implicit: by-time (the default where there are times) or leave-one-out."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="By how much the process may grow, as 2GB (a bare number is bytes): entries are then sorted into "
            "files in DIR/entries and read from there; only low-rank can do so.",
            callback=checked_memory,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=(
                "For every row, write this many of the best columns that it has no entry for; none by default, with "
                "--implicit 10."
            ),
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where factors, errors and predictions go.")
    ] = Path("recovered"),
    seed: Seed = 0,
    threads: Threads = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help=(
                "Candidates tried at the same time, each in a process of one thread (1 by default); -1 for one on "
                "each core."
            )
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Complete a matrix: choose method and rank by cross-validation, fit on all entries, save the factors.

    Entries are lines "row, column, value" with names of any kind; a header may order them otherwise (user, item,
    timestamp, rating), and so may --columns. An .npz
    holds rows, columns, values (and shape), a matrix X with NaN where it is not known,
    scipy's sparse format, or measurements y of ⟨A, X⟩ with their matrices A (count, m, n) or the seed, count and shape
    of Gaussian ones. DIR gets report.html, factors.safetensors, recover.json,
    cross-validation.csv and .svg, and with --top the best unseen columns of every row in top.csv; of a table with a row
    of the matrix in each line also completed.csv, with its gaps filled; with --implicit recover.json and top.csv alone.
    """
    from rankfold.cli.choices import set_threads
    from rankfold.pipeline.recovery import check_ours, complete
    from rankfold.recover import choices, read_arrays, read_pairs, read_sides, read_test, read_triplets
    from rankfold.recover.tables.filling import table_of
    from rankfold.recover.tables.reading import ARRAYS
    from rankfold.run.claim import claimed
    from rankfold.run.progress import Talk

    wanted = methods_of(methods, implicit)
    check_kind(
        implicit,
        ranks=ranks,
        test=test,
        time=time or None,
        rows=rows,
        items=items,
        predict=predict,
        folds=folds,
        at_least=at_least,
        split=split,
    )
    check_used(wanted, time=time and predict is None and duplicates != "last", rows=rows, items=items)
    check_named((file, test, predict), columns=columns, header=header is not None)
    if memory is not None:
        check_in_files(implicit, (file, memory), methods, time=time, rows=rows, items=items)
        check_one_candidate(ranks, folds=folds, jobs=jobs)
    check_values(split, duplicates, jobs)
    tried = listed("ranks", ranks, int) if ranks is not None else None
    top = (10 if implicit else 0) if top is None else top
    check_ours(out, *["top.csv"] * (top > 0), *["predictions.csv"] * (predict is not None))
    set_threads(threads)
    with Talk() as talk, claimed(out, what="recover"):
        arrays = read_arrays(file) if file.suffix.lower() in ARRAYS else {}
        if "y" in arrays:
            check_idle(
                f"with measurements, which {file} holds", test=test, methods=methods, time=time, rows=rows, items=items,
                predict=predict, folds=folds, duplicates=duplicates, implicit=implicit, memory=memory, top=top or None,
                jobs=jobs,
            )  # fmt: skip
            check_one_rank(ranks, "of measurements one rank is found")
            report = _sensed(file, arrays, max(tried) if tried else None, seed, out, talk)
        else:
            if "X" in arrays:
                check_idle("with a matrix, which has one value in each place", duplicates=duplicates)
            named = listed("columns", columns, str) if columns is not None else None
            if memory is not None:
                bound = max(tried) if tried else None
                given = (file, test, predict, named, header, duplicates)
                report = _mapped(given, memory, bound, top, seed, out, talk)
                say_warning(report, talk)
                print_json(report) if as_json else print_recovered(report)
                return
            if implicit:
                report = _implicit(
                    file, wanted, named, header, at_least, split, duplicates, top, seed, out, jobs or 1, talk
                )
                print_json(report) if as_json else print_ranked(report)
                return
            how: Any = {"columns": named, "time": time, "header": header}
            entries = read_triplets(file, duplicates=duplicates, **how)  # type: ignore[arg-type] # checked above
            judge = None if test is None else read_test(test, like=file, **how)
            asked = None if predict is None else read_pairs(predict, like=file, **how)
            table = table_of(file, **how)
            check_ours(out, *["completed.csv"] * (table is not None))
            sides, remarks = read_sides(rows, items, entries)
            say_read(entries, talk, (test, judge), (predict, asked))
            for remark in remarks:
                talk.say(remark)
            report = complete(
                entries,
                choices(wanted, tried, entries.shape, time=time, sides=sides is not None),
                out,
                judge=judge,
                asked=asked,
                sides=sides,
                table=table,
                folds=folds or 5,
                seed=seed,
                top=top,
                jobs=jobs or 1,
                source=file.name,
                progress=talk.progress,
            )
            say_warning(report, talk)
    if as_json:
        print_json(report)
        return
    print_recovered(report)


def _mapped(
    given: tuple[Path, Path | None, Path | None, list[str] | None, bool | None, str | None],
    memory: str,
    rank: int | None,
    top: int,
    seed: int,
    out: Path,
    talk: Talk,
) -> dict[str, Any]:
    from rankfold.pipeline.recovery import complete_mapped
    from rankfold.recover import map_entries, read_pairs, read_test
    from rankfold.report.quantities import bytes_of

    file, test, predict, columns, header, duplicates = given
    entries = map_entries(
        file,
        out / "entries",
        columns=columns,
        header=header,
        duplicates=duplicates or "refuse",  # type: ignore[arg-type] # checked above
        progress=talk.progress,
    )
    judge = None if test is None else read_test(test, columns=columns, header=header, like=file)
    asked = None if predict is None else read_pairs(predict, columns=columns, header=header, like=file)
    say_read(entries, talk, (test, judge), (predict, asked))
    return complete_mapped(
        entries,
        out,
        memory=bytes_of(memory),
        rank=rank,
        judge=judge,
        asked=asked,
        seed=seed,
        top=top,
        source=file.name,
        progress=talk.progress,
    )


def _implicit(
    file: Path,
    methods: list[str],
    columns: list[str] | None,
    header: bool | None,
    at_least: float | None,
    split: str | None,
    duplicates: str | None,
    top: int,
    seed: int,
    out: Path,
    jobs: int,
    talk: Talk,
) -> dict[str, Any]:
    from rankfold.pipeline.recovery import rank_unseen
    from rankfold.recover import candidates, read_plays

    entries = read_plays(
        file,
        columns=columns,
        header=header,
        at_least=at_least,
        duplicates=duplicates or "sum",  # type: ignore[arg-type] # checked above
        time=True if split == "by-time" else None,
    )
    say_read(entries, talk)
    how = split or ("leave-one-out" if entries.times is None else "by-time")
    try:
        return rank_unseen(
            entries,
            candidates(entries, tuple(methods)),
            out,
            split=how,  # type: ignore[arg-type] # one of two
            top=top,
            seed=seed,
            jobs=jobs,
            source=file.name,
            progress=talk.progress,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


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
