"""``rankfold``: every verb, and the exit codes. Nothing here imports torch before a command runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from rankfold.cli.failure import told

VERBS = {  # its module, and what it does in a few words: as in docs/command-line.md
    "demo": ("demo", "Shows everything once, on bundled data."),
    "doctor": ("doctor", "Shows what is installed, what is missing, and which form saves time."),
    "train": ("training.train", "Trains a network, ordinary or as products of factors."),
    "sweep": ("training.sweep", "Trains a grid of runs and selects weight decay."),
    "advise": ("analysis.advise", "Tells what would pay off, in plain words."),
    "analyze": ("analysis.analyze", "Prints the ranks of every matrix."),
    "collapse": ("analysis.collapse", "Explains why layers are low-rank: clusters, neural collapse, bounds."),
    "plan": ("compression.plan", "Chooses ranks within a budget, and changes nothing."),
    "show": ("compression.show", "Prints a plan."),
    "apply": ("compression.apply", "Carries a plan out and saves the model."),
    "compress": ("compression.compress", "Does it all: plan, apply, repair, fine-tune, evaluate, save, report."),
    "slice": ("compression.slice", "Makes a compressed network still smaller, without data."),
    "evaluate": ("analysis.evaluate", "Measures quality, cost and latency."),
    "report": ("analysis.report", "Puts several results side by side in one page."),
    "robustness": ("analysis.robustness", "Measures accuracy under attack, and what each layer amplifies."),
    "export": ("compression.export", "Writes ONNX, torch.export, or a dense folder."),
    "adapt": ("training.adapt", "Trains an adapter of low rank."),
    "extract": ("training.extract", "Extracts an adapter from two checkpoints, or from adapters."),
    "recover": ("recover", "Completes a matrix from some of its entries."),
    "reproduce": ("reproduce", "Trains and draws a table or figure of a paper again."),
}
SETTINGS: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


def verb(name: str) -> Any:
    """The command of this name with all its options; no other is imported."""
    place, _ = VERBS[name]
    inside = vars(import_module(f"rankfold.cli.verbs.{place}"))
    one = typer.Typer(**SETTINGS)
    one.command(name)(told(inside.get(name) or inside[f"{name}_"]))  # as slice_, whose name is Python's
    return typer.main.get_command(one)


class Verbs(TyperGroup):
    """Makes the command that is asked for; says what is wrong with an argument without the words that a library puts
    before it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and verb(name), rest  # none while an unknown one is completed

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def _later() -> None:
    """In place of a command until it is asked for."""


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
for name, (_, does) in VERBS.items():
    app.command(name, short_help=does)(_later)


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
