"""Which options of ``rankfold recover`` go together: what does not is refused before any file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from rankfold.cli.checks import check_idle


def methods_of(methods: str | None, implicit: bool) -> list[str]:
    """The methods that are tried, by name."""
    from rankfold.recover import METHODS
    from rankfold.recover.implicit.candidates import METHODS as RANKERS

    known = RANKERS if implicit else METHODS
    wanted = listed("methods", methods, str) if methods else list(RANKERS if implicit else ("low-rank", "ratings"))
    unknown = [name for name in wanted if name not in known]
    if unknown:
        kind = "with" if implicit else "without"
        raise typer.BadParameter(
            f"there is no method {unknown[0]!r}: the methods {kind} --implicit are {', '.join(known)}"
        )
    return wanted


def check_kind(implicit: bool, **given: Any) -> None:
    """Options that the other kind of data does not have are refused."""
    for name, value in given.items():
        if value is not None and implicit != (name in ("at_least", "split")):
            option = f"--{name.replace('_', '-')}"
            remedy = "leave one of the two out" if implicit else f"add --implicit, or leave {option} out"
            how = "does not go with" if implicit else "goes only with"
            raise typer.BadParameter(f"{option} {how} --implicit: {remedy}")


def check_used(methods: list[str], **given: Any) -> None:
    """What only ratings use is wrong usage without them."""
    if "ratings" not in methods:
        check_idle("without ratings among --methods", **given)


def check_named(files: tuple[Path | None, ...], *, columns: str | None, header: bool) -> None:
    """Which columns there are is not asked of arrays, and a header only of texts."""
    from rankfold.recover.tables.reading import ARRAYS, PARQUET

    kinds = {file.suffix.lower() for file in files if file is not None}
    if kinds <= {*ARRAYS}:
        check_idle("with arrays, which have no names of columns", columns=columns)
    if kinds <= {*ARRAYS, *PARQUET}:
        check_idle("with files that are no text", header=header)


def check_values(split: str | None, duplicates: str | None, jobs: int | None) -> None:
    """Refuses unknown words, and numbers of processes below 1 other than -1."""
    if split not in (None, "by-time", "leave-one-out"):
        raise typer.BadParameter(f"--split must be by-time or leave-one-out, got {split!r}")
    if duplicates not in (None, "refuse", "mean", "last", "sum"):
        raise typer.BadParameter(f"--duplicates must be refuse, mean, last or sum, got {duplicates!r}")
    if jobs is not None and jobs < 1 and jobs != -1:
        raise typer.BadParameter(f"--jobs must be a number of processes, or -1 for one on each core, got {jobs}")


def check_in_files(implicit: bool, given: tuple[Path, str], methods: str | None, **held: Any) -> None:
    """What holds all entries in memory is refused with a bound of it, and a bound that nothing could keep to."""
    from rankfold.pipeline.recovery import check_memory
    from rankfold.recover.mapped.mapping import check_mapped
    from rankfold.report.quantities import bytes_of

    if implicit:
        raise typer.BadParameter(
            "--memory does not go with --implicit, whose methods hold all entries in memory: leave --memory out, or in "
            "Python fit ImplicitFeedback('als') to map_entries(…)"
        )
    if methods is not None and listed("methods", methods, str) != ["low-rank"]:
        raise typer.BadParameter(
            "with --memory the method is low-rank, as all others hold every entry in memory: leave --methods out, or "
            "leave --memory out"
        )
    for name, value in held.items():
        if value:
            raise typer.BadParameter(
                f"--{name} is for the method ratings, which holds all entries in memory: leave --{name} or --memory out"
            )
    file, memory = given
    check_mapped(file)
    check_memory(bytes_of(memory))


def check_one_candidate(ranks: str | None, **given: int | None) -> None:
    """What chooses among candidates is refused where there is one."""
    for name, value in given.items():
        if value is not None:
            raise typer.BadParameter(
                f"--{name} is for choosing among methods and ranks by cross-validation, and with --memory there is one "
                f"method: leave --{name} out"
            )
    check_one_rank(ranks, "with --memory low-rank finds the rank itself")


def check_one_rank(ranks: str | None, why: str) -> None:
    """Several ranks are refused where the largest alone counts."""
    if ranks is not None and len(tried := listed("ranks", ranks, int)) > 1:
        raise typer.BadParameter(f"{why}, up to one largest rank: give --ranks {max(tried)} instead of --ranks {ranks}")


def listed(option: str, text: str, kind: type) -> list[Any]:
    """The values of an option, which stand between commas."""
    try:
        found = [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "values"
        raise typer.BadParameter(f"--{option} takes {what} separated by commas, got {text!r}") from None
    if kind is int and min(found) < 1:
        raise typer.BadParameter(f"--{option}: a rank must be at least 1, got {min(found)}")
    return found
