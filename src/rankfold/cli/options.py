"""The options that several verbs share, as types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Spec = Annotated[
    str, typer.Argument(metavar="MODEL", help="Built-in name (resnet20, digits-cnn, …) or package.module:factory.")
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
        help="digits, mnist, fashion-mnist, cifar10, or package.module:factory; by default the model's own.",
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a data set that is not in RANKFOLD_DATA from the Hugging Face hub.")
]
Budgets = Annotated[
    list[str],
    typer.Option(
        "--budget",
        metavar="KIND=FRACTION",
        help="Kept fraction of the whole model: flops=0.5, params=0.4, bytes=0.5, latency=0.8@64, energy=0.99. "
        "Give it again for several; all must hold.",
    ),
]
MethodName = Annotated[str, typer.Option("--method", metavar="M", help="project (uses data), truncate, tucker or cp.")]
RuleName = Annotated[str, typer.Option("--ranks", metavar="R", help="optimal, local, global or iterative.")]
Samples = Annotated[int, typer.Option(min=1, help="Calibration samples, drawn from the training split.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random choice.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; by default as many as torch takes.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Restart = Annotated[bool, typer.Option("--restart", help="Replace an earlier run that was asked otherwise.")]
NoCurve = Annotated[
    bool, typer.Option("--no-curve", help="Leave the curve of accuracy against budget out of the report.")
]
