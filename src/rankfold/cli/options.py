"""The options that several verbs share, as types. What can be seen to be wrong without a model is wrong usage."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

OBJECTIVES = (
    "classification", "segmentation", "token-classification", "multi-label", "regression", "causal-lm", "masked-lm",
    "embedding", "teacher",
)  # fmt: skip
FORMS = ("factored", "pivoted", "spatial", "tucker", "cp", "shared", "int8", "residual", "all")
METHODS = ("project", "sequential", "relu", "nuclear", "maxnorm", "truncate", "tucker", "cp")
RULES = ("optimal", "local", "global", "iterative")


def _model(spec: str) -> str:
    if not spec:  # nothing is typed yet: the shell completes a line
        return spec
    from rankfold.run.disk.pretrained import is_folder
    from rankfold.zoo import model_names

    if is_folder(spec) or "/" in spec:  # a folder, or OWNER/NAME on the hub; looked up where it is opened
        return spec
    return _known(spec, "model", model_names(), "package.module:factory, or a folder of transformers")


def _data(name: str | None) -> str | None:
    if name is None:
        return None
    from rankfold.run.disk.given import how_to_give
    from rankfold.zoo import data_names

    if name not in data_names() and ":" not in name and Path(name).exists():
        raise typer.BadParameter(how_to_give(Path(name)))
    return _known(name, "data set", data_names(), "package.module:factory")


def _method(name: str) -> str:
    return _known(name, "method", METHODS)


def _method_or_none(name: str | None) -> str | None:
    return None if name is None else _method(name)


def _forms(given: list[str]) -> list[str]:
    names = [name.strip() for each in given for name in each.split(",")]
    for name in names:
        _known(name, "form", FORMS)
    return names


def _rule(name: str) -> str:
    return _known(name, "rank rule", RULES)


def _objective(name: str | None) -> str | None:
    return None if name is None else _known(name, "objective", OBJECTIVES, "package.module:objective")


def _complete(*names: str) -> Callable[[str], list[str]]:
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


def _budgets(texts: list[str]) -> list[str]:
    if not texts:
        return texts
    from rankfold.compress.ranks.asked import parse_budget

    for text in texts:
        try:
            parse_budget(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return texts


def _max_drop(value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise typer.BadParameter(
            "must be 0 or more: how far the judging figure may fall, in points of a percentage or in its own "
            f"unit; got {value:g}"
        )
    return value


def _fallen(text: str | None) -> str | None:
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


Spec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Built-in name (resnet20, digits-cnn, …), package.module:factory, a folder of transformers, or OWNER/NAME "
        "of one in the cache of the Hugging Face hub.",
        callback=_model,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights of the trained model: a state dict in .safetensors or a torch file that holds no code.",
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help=(
            "digits, mnist, fashion-mnist, cifar10, cifar100, imagefolder:DIR, parquet:DIR, package.module:factory, "
            "text:FILE (.txt, .parquet, .jsonl) or tokens:FILE.npy. Default: the data that belong to the model."
        ),
        callback=_data,
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch a model or data set that is not on this machine from the Hugging Face hub."),
]
Length = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Of text: tokens in a window, or at most in a line; 256 by default.",
        show_default=False,
        metavar="N",
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of text: use only the first N windows or lines of each part.", show_default=False, metavar="N"
    ),
]


class OfWhat(StrEnum):
    """What a budget is a fraction of."""

    model = "model"
    sites = "sites"


BudgetOf = Annotated[
    OfWhat,
    typer.Option(
        "--of", help="What budgets are shares of: the whole model, or the layers that can be factored, as in papers."
    ),
]
Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="KIND=FRACTION",
        help=(
            "Share of the whole model that is kept: flops=0.5, params=0.4, bytes=0.5, latency=0.8@64, energy=0.99. "
            "May be given several times; all must hold."
        ),
        callback=_budgets,
    ),
]
BudgetsOrNone = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="KIND=FRACTION",
        help=(
            "Share of the whole model that is kept: flops=0.5, params=0.4, bytes=0.5, latency=0.8@64, energy=0.99. "
            "May be given several times; all must hold."
        ),
        callback=_budgets,
        show_default=False,
    ),
]


class SmallestBy(StrEnum):
    """What a search for the smallest network makes small."""

    flops = "flops"
    params = "params"
    bytes = "bytes"
    latency = "latency"


MaxDropped = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="X",
        help=(
            "Find the smallest network whose judging figure on the validation split falls by at most X: in points "
            "of a percentage (accuracy, mean IoU) or in the figure's own unit. In place of --budget, or together "
            "with it."
        ),
        callback=_max_drop,
        show_default=False,
    ),
]
Fallen = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="X",
        help=(
            "Find the smallest network whose judging figure on the validation split gets worse by at most X: in points "
            "of a percentage (accuracy, mean IoU) or in the figure's own unit; kl=X for another figure by its name. In "
            "place of --budget, or together with it."
        ),
        callback=_fallen,
        show_default=False,
    ),
]
Smallest = Annotated[
    SmallestBy | None,
    typer.Option("--smallest", help="With --max-drop: what is to be smallest; FLOPs by default.", show_default=False),
]
_METHOD_HELP = (
    "project (uses data); sequential (slower and better: each layer corrects those before it), relu, nuclear, "
    "maxnorm; truncate, tucker and cp need no data."
)
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="M",
        help=_METHOD_HELP,
        callback=_method,
        autocompletion=_complete(*METHODS),
    ),
]
MethodOrNone = Annotated[
    str | None,
    typer.Option("--method", metavar="M", help=f"{_METHOD_HELP} Default: project.", callback=_method_or_none),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help=(
            "By how much the process may grow, such as 8GB or 4GiB. A folder of transformers is then read, fitted "
            "and written block by block; for other models second moments (of sequential, relu, nuclear, maxnorm) "
            "are taken for a few layers at a time."
        ),
        callback=checked_memory,
    ),
]
RuleName = Annotated[
    str,
    typer.Option(
        "--ranks",
        metavar="R",
        help="optimal, local, global or iterative.",
        callback=_rule,
        autocompletion=_complete(*RULES),
    ),
]
RankMultiple = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Only ranks that are multiples of N: 32 or 64 for block quantisers, 8 for most matrix kernels.",
    ),
]
Only = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help=(
            "Factor only layers whose name, or that of a block around them, matches; * stands for anything. May be "
            "given several times."
        ),
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Leave layers that match as they are; this takes precedence over --only.",
        show_default=False,
    ),
]
FormNames = Annotated[
    list[str],
    typer.Option(
        "--forms",
        metavar="NAMES",
        help=(
            "Forms to choose from, with commas between them: factored, pivoted, spatial; int8 and residual (low "
            "rank over int4), which store whole numbers and pay only with --budget bytes=…; shared (one factor for "
            "all layers that read the same tensor); or all."
        ),
        show_default=False,
        callback=_forms,
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Calibration samples, drawn from the training split.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
ObjectiveName = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="NAME",
        help=(
            "What outputs and targets mean: classification, segmentation, token-classification, multi-label, "
            "regression, causal-lm, masked-lm, embedding, teacher, or package.module:objective. Default: found out "
            "from data and model."
        ),
        callback=_objective,
        autocompletion=_complete(*OBJECTIVES),
        show_default=False,
    ),
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", metavar="D", help="Where to compute: cpu, cuda, cuda:1, or auto (cuda where there is one)."
    ),
]


class PrecisionName(StrEnum):
    """The arithmetic of forward passes; weights stay as they are."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


Precision = Annotated[
    PrecisionName,
    typer.Option(
        "--precision",
        help="Precision of forward passes; auto is bfloat16 where the machine has it, and float16 needs cuda.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default as many as torch takes.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace an earlier run with other settings.")]
NoSlices = Annotated[
    bool,
    typer.Option(
        "--no-slices",
        help="Do not keep what rankfold slice needs: this saves disk space, and the result cannot be sliced later.",
    ),
]
NoCurve = Annotated[
    bool, typer.Option("--no-curve", help="Leave the curve of quality against budget out of the report.")
]
