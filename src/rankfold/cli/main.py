"""``rankfold``: every verb, and the exit codes. Nothing here imports torch before a command runs."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from rankfold.cli.failure import told
from rankfold.cli.verbs.analysis.advise import advise
from rankfold.cli.verbs.analysis.analyze import analyze
from rankfold.cli.verbs.analysis.collapse import collapse
from rankfold.cli.verbs.analysis.evaluate import evaluate
from rankfold.cli.verbs.analysis.report import report
from rankfold.cli.verbs.analysis.robustness import robustness
from rankfold.cli.verbs.compression.apply import apply
from rankfold.cli.verbs.compression.compress import compress
from rankfold.cli.verbs.compression.export import export
from rankfold.cli.verbs.compression.plan import plan
from rankfold.cli.verbs.compression.show import show
from rankfold.cli.verbs.compression.slice import slice_
from rankfold.cli.verbs.demo import demo
from rankfold.cli.verbs.doctor import doctor
from rankfold.cli.verbs.recover import recover
from rankfold.cli.verbs.reproduce import reproduce
from rankfold.cli.verbs.training.adapt import adapt
from rankfold.cli.verbs.training.extract import extract
from rankfold.cli.verbs.training.sweep import sweep
from rankfold.cli.verbs.training.train import train


class Verbs(TyperGroup):
    """Says what is wrong with an argument without the words that a library puts before it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="rankfold",
    cls=Verbs,
    help="Find and use low-rank structure in deep networks: make a trained network smaller within a budget.",
    epilog=(
        "MODEL is a built-in name (resnet20, vit-l4-h4, digits-cnn), a folder of a Hugging Face model, or "
        "package.module:factory, a function that returns yours. Results go to "
        "standard output, progress and errors to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
VERBS = (  # with what each does, in a few words: as in docs/command-line.md
    (demo, "Shows everything once, on bundled data."),
    (doctor, "Shows what is installed, what is missing, and which form saves time."),
    (train, "Trains a network, ordinary or as products of factors."),
    (sweep, "Trains a grid of runs and selects weight decay."),
    (advise, "Tells what would pay off, in plain words."),
    (analyze, "Prints the ranks of every matrix."),
    (collapse, "Explains why layers are low-rank: clusters, neural collapse, bounds."),
    (plan, "Chooses ranks within a budget, and changes nothing."),
    (show, "Prints a plan."),
    (apply, "Carries a plan out and saves the model."),
    (compress, "Does it all: plan, apply, repair, fine-tune, evaluate, save, report."),
    (slice_, "Makes a compressed network still smaller, without data."),
    (evaluate, "Measures quality, cost and latency."),
    (report, "Puts several results side by side in one page."),
    (robustness, "Measures accuracy under attack, and what each layer amplifies."),
    (export, "Writes ONNX, torch.export, or a dense folder."),
    (adapt, "Trains an adapter of low rank."),
    (extract, "Extracts an adapter from two checkpoints, or from adapters."),
    (recover, "Completes a matrix from some of its entries."),
    (reproduce, "Trains and draws a table or figure of a paper again."),
)
for verb, does in VERBS:
    app.command(verb.__name__.rstrip("_"), short_help=does)(told(verb))


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
