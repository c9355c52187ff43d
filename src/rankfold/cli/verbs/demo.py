"""``rankfold demo``: everything once, on data that come with scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from rankfold.cli.options import Json, Threads

if TYPE_CHECKING:
    import torch

    from rankfold.run.progress import Talk
    from rankfold.zoo import Data

MODEL, BUDGET, EPOCHS, FINETUNE_EPOCHS, SAMPLES = "digits-cnn", "flops=0.2", 8, 4, 1024
WEIGHTS = f"{MODEL}.safetensors"


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where everything is written.")] = Path(
        "rankfold-demo"
    ),
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train a small network on bundled digits, remove four fifths of its FLOPs, save it, load it and prove it the same.

    Needs no network and no files.
    """
    from rankfold.cli.choices import set_threads
    from rankfold.cli.printing import count, percent, print_json
    from rankfold.cli.verbs.analysis.analyze import print_analysis
    from rankfold.cli.verbs.compression.compress import print_result
    from rankfold.cli.verbs.compression.show import print_plan
    from rankfold.pipeline import Settings, Tell, analyse, check_place, compress
    from rankfold.run.progress import Talk
    from rankfold.zoo import load_data

    began = time.perf_counter()
    set_threads(threads)
    check_place(out)
    with Talk() as talk:
        data = load_data("digits")
        talk.say(
            f"1. Train {MODEL} on {len(data.train)} handwritten digits of 8×8 pixels ({len(data.validation)} "
            f"more to choose by, {len(data.test)} more to test)"
        )
        network = trained(data, talk)
        talk.say("2. Analyse: how low-rank are its matrices?")
        rows, found = analyse(network, data.train, samples=SAMPLES, progress=talk.progress)
        if not as_json:
            talk.clear()
            print_analysis(rows, found, brief=True)
        talk.say(f"3. Compress within the budget {BUDGET}: plan, factor, repair, fine-tune, evaluate, report")
        result = compress(
            network,
            data,
            BUDGET,
            settings=Settings(samples=SAMPLES, finetune=FINETUNE_EPOCHS, model=MODEL),
            directory=out,
            restart=True,
            tell=Tell(talk.progress, talk.say),
        )
        save_weights(network, out / WEIGHTS)
        talk.say("4. Load what was saved, and compare it with what is in memory")
        difference = loaded_difference(result.model, out, data)
    seconds = time.perf_counter() - began
    if difference != 0:
        raise ValueError(f"the model loaded from {out} differs from the saved one by {difference:.3g}")
    if as_json:
        print_json(result.to_dict() | {"max_abs_difference": difference, "directory": str(out), "seconds": seconds})
        return
    print()
    print_plan(result.plan, brief=True)
    print()
    print_result(result)
    removed = (
        f"{percent(result.flops_removed, 0)} of the FLOPs and {percent(result.params_removed, 0)} of the parameters"
    )
    print(
        f"\nloaded from disk: its {count(len(data.test))} × {data.classes} outputs differ by at most {difference:g}\n"
        f"\n{removed} are gone, in {seconds:.0f} seconds."
        f"\nReport: {out / 'report.html'}"
        f"\n\nNext, smaller still, with another budget:"
        f"\n  rankfold compress {MODEL} --weights {quote(str(out / WEIGHTS))} --data digits --budget flops=0.1 \\"
        f"\n    --budget params=0.1 --finetune-epochs 10 -o {out.with_name('smaller')}"
    )


def trained(data: Data, talk: Talk) -> torch.nn.Module:
    """The network of the demonstration, trained from nothing."""
    from rankfold.pipeline import Tell
    from rankfold.train import Recipe, fit
    from rankfold.zoo import model

    network = model(MODEL)
    recipe = Recipe(epochs=EPOCHS, batch_size=64, learning_rate=0.05)
    fit(network, data.train, data.validation, recipe, progress=Tell(talk.progress, talk.say).training("training"))
    return network.eval()


def save_weights(network: torch.nn.Module, file: Path) -> None:
    from rankfold.run.disk.container import packed
    from rankfold.run.disk.files import write_atomically

    write_atomically(file, packed(network.state_dict()))


def loaded_difference(saved: torch.nn.Module, directory: Path, data: Data) -> float:
    """Largest absolute difference of the outputs on the test split, of the model in memory and of the one on disk."""
    import torch

    from rankfold.costs import evaluating
    from rankfold.store import load
    from rankfold.zoo import model

    fresh = load(directory, model(MODEL)).model
    inputs = data.test.normalize(data.test.inputs)
    with evaluating(saved), evaluating(fresh), torch.no_grad():
        return float((saved(inputs) - fresh(inputs)).abs().max())
