"""What can be seen to be wrong with an option without a model, said as wrong usage; what the shell offers on Tab."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from errno import EISDIR
from pathlib import Path

import typer

OBJECTIVES = (
    "classification", "segmentation", "token-classification", "multi-label", "regression", "causal-lm", "masked-lm",
    "embedding", "teacher",
)  # fmt: skip
FORMS = ("factored", "pivoted", "spatial", "tucker", "cp", "shared", "int8", "residual", "all")
METHODS = ("project", "sequential", "relu", "nuclear", "maxnorm", "truncate", "tucker", "cp")
RULES = ("optimal", "local", "global", "iterative")


def checked_model(spec: str) -> str:
    if not spec:  # nothing is typed yet: the shell completes a line
        return spec
    from rankfold.run.disk.pretrained import is_folder
    from rankfold.zoo.models import model_names, no_such

    # a folder, or OWNER/NAME on the hub; looked up where it is opened
    if is_folder(spec) or "/" in spec or ":" in spec or spec in model_names():
        return spec
    raise typer.BadParameter(no_such(spec))


def checked_data(name: str | None) -> str | None:
    if name is None:
        return None
    from rankfold.run.disk.given import how_to_give
    from rankfold.zoo import data_names

    if name not in data_names() and ":" not in name and Path(name).exists():
        raise typer.BadParameter(how_to_give(Path(name)))
    return _known(name, "data set", data_names(), "package.module:factory")


def checked_method(name: str) -> str:
    return _known(name, "method", METHODS)


def checked_method_or_none(name: str | None) -> str | None:
    return None if name is None else checked_method(name)


def checked_forms(given: list[str]) -> list[str]:
    names = [name.strip() for each in given for name in each.split(",")]
    for name in names:
        _known(name, "form", FORMS)
    return names


def checked_rule(name: str) -> str:
    return _known(name, "rank rule", RULES)


def checked_objective(name: str | None) -> str | None:
    return None if name is None else _known(name, "objective", OBJECTIVES, "package.module:objective")


def check_is_file(out: Path, such_as: str) -> None:
    """``OSError`` where a folder was given for the file that would be written at the end."""
    if out.is_dir():
        raise IsADirectoryError(EISDIR, f"is a folder: give the name of a file, such as {out / such_as}", str(out))


def check_is_page(out: Path, such_as: str) -> None:
    """The same, and ``ValueError`` where a page would replace a file that rankfold did not write."""
    from rankfold.run.disk.foreign import check_page

    check_is_file(out, such_as)
    check_page(out)


def check_idle(where: str, **given: object) -> None:
    """Wrong usage for an option that was given and would do nothing ``where``."""
    for name, value in given.items():
        if value not in (None, False, [], ()):
            raise typer.BadParameter(f"does nothing {where}: leave it out", param_hint=f"--{name.replace('_', '-')}")


def completing(*names: str) -> Callable[[str], list[str]]:
    """What the shell offers on Tab."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _known(value: str, what: str, known: tuple[str, ...], other: str = "") -> str:
    if value in known or (other and ":" in value):
        return value
    near = get_close_matches(value, known, 1)
    raise typer.BadParameter(
        f"there is no {what} {value!r}: {f'did you mean {near[0]}? The' if near else 'the'} names are "
        f"{', '.join(known)}{f'; your own is given as {other}' if other else ''}"
    )


def checked_budgets(texts: list[str]) -> list[str]:
    if not texts:
        return texts
    from rankfold.compress.ranks.asked import parse_budget

    for text in texts:
        try:
            parse_budget(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return texts


def checked_max_drop(value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise typer.BadParameter(
            "must be 0 or more: how far the judging figure may fall, in points of a percentage or in its own "
            f"unit; got {value:g}"
        )
    return value


def checked_fallen(text: str | None) -> str | None:
    if text is not None:
        from rankfold.pipeline.quality.value import MaxDrop

        try:
            MaxDrop.of(text, "flops")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return text


def checked_memory(text: str | None) -> str | None:
    if text is None:
        return None
    from rankfold.report.quantities import bytes_of

    try:
        bytes_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text
