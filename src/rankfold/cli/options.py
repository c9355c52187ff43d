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
    from rankfold.run.pretrained import is_folder
    from rankfold.zoo import model_names

    if is_folder(spec) or "/" in spec:  # a folder, or OWNER/NAME on the hub; looked up where it is opened
        return spec
    return _known(spec, "unknown model", model_names(), "package.module:factory, or a folder of transformers")


def _data(name: str | None) -> str | None:
    if name is None:
        return None
    from rankfold.zoo import data_names

    return _known(name, "unknown data set", data_names(), "package.module:factory")


def _method(name: str) -> str:
    return _known(name, "no method named", METHODS)


def _method_or_none(name: str | None) -> str | None:
    return None if name is None else _method(name)


def _forms(given: list[str]) -> list[str]:
    names = [name.strip() for each in given for name in each.split(",")]
    for name in names:
        _known(name, "no form named", FORMS)
    return names


def _rule(name: str) -> str:
    return _known(name, "no rank rule named", RULES)


def _objective(name: str | None) -> str | None:
    return None if name is None else _known(name, "no objective named", OBJECTIVES, "package.module:objective")


def _complete(*names: str) -> Callable[[str], list[str]]:
    """What the shell offers on Tab."""
    return lambda incomplete: [name for name in names if name.startswith(incomplete)]


def _known(value: str, fault: str, known: tuple[str, ...], other: str = "") -> str:
    if value in known or (other and ":" in value):
        return value
    near = get_close_matches(value, known, 1)
    raise typer.BadParameter(
        f"{fault} {value!r}; {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(known)}"
        f"{f', and your own as {other}' if other else ''}"
    )


def _budgets(texts: list[str]) -> list[str]:
    if not texts:
        return texts
    from rankfold.compress.ranks.budget import parse_budget

    for text in texts:
        try:
            parse_budget(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return texts


def _max_drop(value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise typer.BadParameter(
            "how far the judging figure may fall, in points of a percentage or in its own unit: 0 or more, got "
            f"{value:g}"
        )
    return value


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
    typer.Option(metavar="FILE", help="State dict of the trained model: .safetensors, or a torch file without code."),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="digits, mnist, fashion-mnist, cifar10, cifar100, imagefolder:DIR, parquet:DIR, package.module:factory, "
        "text:FILE (.txt, .parquet, .jsonl) or tokens:FILE.npy; by default the model's own.",
        callback=_data,
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a model or data set that is not here from the Hugging Face hub.")
]
Length = Annotated[
    int | None,
    typer.Option(
        min=2, help="Text: tokens of a window, or at most of a line; by default 256.", show_default=False, metavar="N"
    ),
]
Windows = Annotated[
    int | None,
    typer.Option(
        min=1, help="Text: at most N windows or lines of each part, the first.", show_default=False, metavar="N"
    ),
]


class OfWhat(StrEnum):
    """What a budget is a fraction of."""

    model = "model"
    sites = "sites"


BudgetOf = Annotated[
    OfWhat,
    typer.Option(
        "--of", help="What budgets are fractions of: the whole model, or the layers that can be factored, as in papers."
    ),
]
Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="KIND=FRACTION",
        help="Kept fraction of the whole model: flops=0.5, params=0.4, bytes=0.5, latency=0.8@64, energy=0.99. "
        "Give it again for several; all must hold.",
        callback=_budgets,
    ),
]
BudgetsOrNone = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="KIND=FRACTION",
        help="Kept fraction of the whole model: flops=0.5, params=0.4, bytes=0.5, latency=0.8@64, energy=0.99. "
        "Give it again for several; all must hold.",
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
        help="The smallest network whose judging figure falls by at most X on validation, in points of a percentage "
        "(accuracy, mean IoU) or in the figure's own unit; instead of --budget or besides.",
        callback=_max_drop,
        show_default=False,
    ),
]
Smallest = Annotated[
    SmallestBy | None,
    typer.Option("--smallest", help="With --max-drop: smallest by what; by FLOPs otherwise.", show_default=False),
]
_METHOD_HELP = (
    "project (uses data); sequential (slower, better: each layer corrects those before it), relu, nuclear, maxnorm; "
    "without data truncate, tucker, cp."
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
        help="By how much the process may grow, as 8GB or 4GiB: a folder of transformers is then read, fitted and "
        "written block by block; of other models second moments (sequential, relu, nuclear, maxnorm) are taken a few "
        "at a time.",
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
        min=1, metavar="N", help="Ranks in multiples of N: 32 or 64 for block quantisers, 8 for most matrix kernels."
    ),
]
Only = Annotated[
    list[str],
    typer.Option(
        metavar="PATTERN",
        help="Only layers whose name, or that of a block around them, matches; * stands for anything. Give it again "
        "for several.",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str],
    typer.Option(metavar="PATTERN", help="Leave such layers as they are; goes before --only.", show_default=False),
]
FormNames = Annotated[
    list[str],
    typer.Option(
        "--forms",
        metavar="NAMES",
        help="Which forms are weighed, with commas between them: factored, pivoted, spatial, and in whole numbers "
        "int8 and residual (low rank over int4), which only --budget bytes=… has reason to take; shared: one factor "
        "of all layers that read one tensor; or all.",
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
        help="What outputs and targets mean: classification, segmentation, token-classification, multi-label, "
        "regression, causal-lm, masked-lm, embedding, teacher, or package.module:objective; by default told from data "
        "and model.",
        callback=_objective,
        autocompletion=_complete(*OBJECTIVES),
        show_default=False,
    ),
]
DeviceName = Annotated[
    str,
    typer.Option("--device", metavar="D", help="Where to compute: cpu, cuda, cuda:1, or auto: cuda if there is any."),
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
        help="Arithmetic of forward passes; auto is bfloat16 where the machine has it, float16 needs cuda.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default as many as torch takes.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace an earlier run that was asked otherwise.")]
NoSlices = Annotated[
    bool, typer.Option("--no-slices", help="Leave out what slice needs: less disk space, no smaller budgets later.")
]
NoCurve = Annotated[
    bool, typer.Option("--no-curve", help="Leave the curve of quality against budget out of the report.")
]
