"""The options that several verbs share, as types."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankfold.cli.checks import (
    METHODS,
    OBJECTIVES,
    RULES,
    checked_budgets,
    checked_data,
    checked_fallen,
    checked_forms,
    checked_max_drop,
    checked_memory,
    checked_method,
    checked_method_or_none,
    checked_model,
    checked_objective,
    checked_rule,
    completing,
)  # fmt: skip

Spec = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Built-in name (resnet20, digits-cnn, …), package.module:factory, a folder of transformers, or OWNER/NAME "
        "of one in the cache of the Hugging Face hub.",
        callback=checked_model,
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
            "text:FILE (.txt, .csv, .parquet, .jsonl) or tokens:FILE.npy. Default: the data that belong to the model."
        ),
        callback=checked_data,
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
        callback=checked_budgets,
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
        callback=checked_budgets,
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
        callback=checked_max_drop,
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
        callback=checked_fallen,
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
        callback=checked_method,
        autocompletion=completing(*METHODS),
    ),
]
MethodOrNone = Annotated[
    str | None,
    typer.Option("--method", metavar="M", help=f"{_METHOD_HELP} Default: project.", callback=checked_method_or_none),
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
        callback=checked_rule,
        autocompletion=completing(*RULES),
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
        callback=checked_forms,
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
        callback=checked_objective,
        autocompletion=completing(*OBJECTIVES),
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
