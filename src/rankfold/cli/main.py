"""``rankfold``: every verb, and the exit codes. Nothing here imports torch before a command runs."""

from __future__ import annotations

import typer

from rankfold.cli.failure import told
from rankfold.cli.verbs.adapt import adapt
from rankfold.cli.verbs.advise import advise
from rankfold.cli.verbs.analyze import analyze
from rankfold.cli.verbs.apply import apply
from rankfold.cli.verbs.collapse import collapse
from rankfold.cli.verbs.compress import compress
from rankfold.cli.verbs.demo import demo
from rankfold.cli.verbs.doctor import doctor
from rankfold.cli.verbs.evaluate import evaluate
from rankfold.cli.verbs.export import export
from rankfold.cli.verbs.extract import extract
from rankfold.cli.verbs.plan import plan
from rankfold.cli.verbs.recover import recover
from rankfold.cli.verbs.reproduce import reproduce
from rankfold.cli.verbs.robustness import robustness
from rankfold.cli.verbs.show import show
from rankfold.cli.verbs.slice import slice_
from rankfold.cli.verbs.sweep import sweep
from rankfold.cli.verbs.train import train

app = typer.Typer(
    name="rankfold",
    help="Find and exploit low-rank structure in deep networks: make a trained network smaller within a budget.",
    epilog="MODEL is a built-in name (resnet20, vit-l4-h4, digits-cnn) or package.module:factory. "
    "Data go to standard output, talk to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
for verb in (
    demo,
    doctor,
    train,
    sweep,
    advise,
    analyze,
    collapse,
    plan,
    show,
    apply,
    compress,
    slice_,
    evaluate,
    robustness,
    export,
    adapt,
    extract,
    recover,
    reproduce,
):
    app.command(verb.__name__.rstrip("_"))(told(verb))


@app.callback(invoke_without_command=True)
def about(version: bool = typer.Option(False, "--version", is_eager=True, help="Print the version.")) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("rankfold"))
        raise typer.Exit


def main() -> None:
    """The entry point of the command line."""
    app(prog_name="rankfold")


if __name__ == "__main__":
    main()
