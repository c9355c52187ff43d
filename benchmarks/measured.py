"""What ``two_commits.py`` runs inside one process of one commit. Prints a JSON object on the last line.

    python benchmarks/measured.py inputs FOLDER         # weights and a plan that all jobs take, made once
    python benchmarks/measured.py counts ARGUMENTS…     # a rankfold command; how often the costly things happened
    python benchmarks/measured.py stages ARGUMENTS…     # a rankfold command under cProfile; seconds of each stage
    python benchmarks/measured.py second WEIGHTS        # a second budget from one profile, beside the first
    python benchmarks/measured.py sweep WEIGHTS         # layers fitted one by one: time, and how far outputs move

Only names that every commit has are imported; what a commit lacks is said and skipped.
"""

from __future__ import annotations

import copy
import cProfile
import json
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

DECOMPOSITIONS = ("eigh", "eigvalsh", "svd", "svdvals")
At = tuple[str | tuple[str, ...], str]

# the end of the file's path (or of either) and the function: counted at every call, or timed with all that they call
COUNTED: dict[str, At] = {
    "evaluations": ("train/evaluation.py", "evaluate"),
    "forward passes": (("rankfold/batches.py", "batches/__init__.py"), "forward"),
    "searches for sites": ("sites/find.py", "sites"),
    "plans applied": ("/apply.py", "apply_"),
    "BatchNorm repairs": (("/batchnorm.py", "compress/repair.py"), "reestimate_"),
    "costs traced": (("rankfold/costs.py", "costs/count.py"), "trace"),
}
STAGES: dict[str, At] = {
    "plan": ("/planner.py", "plan"),
    "statistics (of plan)": ("/statistics.py", "calibrate"),
    "output metrics (of statistics)": ("/metric.py", "output_metrics"),
    "copies compressed and repaired": ("pipeline/compression/repair.py", "compressed_copy"),
    "BatchNorm repair (of copies)": (("/batchnorm.py", "compress/repair.py"), "reestimate_"),
    "curve": ("/curve.py", "quality_curve"),
    "evaluations": ("train/evaluation.py", "evaluate"),
    "figures": ("/measure.py", "figures"),
    "latencies (of figures)": (("rankfold/costs.py", "costs/clock.py"), "latencies"),
    "bottlenecks": ("/bottlenecks.py", "bottlenecks"),
    "errors of layers": ("/heldout.py", "layer_errors"),
    "page": ("/delivery.py", "write_page"),
}


def alike(file: str, function: str, wanted: At) -> bool:
    return function == wanted[1] and file.replace("\\", "/").endswith(wanted[0])


def command(arguments: list[str]) -> None:
    from rankfold.cli.main import app

    app(arguments, prog_name="rankfold", standalone_mode=False)


def counts(arguments: list[str]) -> dict[str, Any]:
    """Calls of torch's decompositions and of ``COUNTED``. A batch of matrices is one call and several matrices."""
    found: Counter[str] = Counter()
    wanted: dict[Any, str | None] = {}

    def counting(name: str) -> Callable[..., Any]:
        plain = getattr(torch.linalg, name)

        def counted(matrix: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            found["decompositions"] += 1
            found["matrices decomposed"] += max(1, matrix.shape[:-2].numel())
            found[name] += 1
            return plain(matrix, *args, **kwargs)

        return counted

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in wanted:
                names = (name for name, at in COUNTED.items() if alike(code.co_filename, code.co_name, at))
                wanted[code] = next(names, None)
            if (name := wanted[code]) is not None:
                found[name] += 1

    for name in DECOMPOSITIONS:
        setattr(torch.linalg, name, counting(name))
    sys.setprofile(called)
    try:
        command(arguments)
    finally:
        sys.setprofile(None)
    return dict(found)


def stages(arguments: list[str]) -> dict[str, Any]:
    """Seconds of processor time of each of ``STAGES``, with everything that it calls; and of the whole."""
    profile = cProfile.Profile(time.process_time)
    before = time.process_time()
    profile.enable()
    try:
        command(arguments)
    finally:
        profile.disable()
    seconds: dict[str, float] = {"imports": before, "whole": time.process_time()}
    for (file, _, function), row in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        for name, at in STAGES.items():
            if alike(file, function, at):
                seconds[name] = seconds.get(name, 0.0) + row[3]
    return {name: round(value, 2) for name, value in seconds.items()}


def second(weights: str) -> dict[str, Any]:
    """Processor seconds of a profile with its first plan, and of each further budget."""
    import rankfold as rf
    from rankfold import zoo
    from rankfold.pipeline import calibration_part

    if not hasattr(rf, "profile"):
        return {"skipped": "this commit has no rf.profile"}
    torch.set_num_threads(1)
    data, network = zoo.load_data("cifar10"), zoo.model("resnet56")
    zoo.load_weights(network, weights)
    part = calibration_part(data.train, 2048, 0)
    began = time.process_time()
    profile = rf.profile(network.eval(), part)
    profile.plan("flops=0.5")
    first, further = time.process_time() - began, []
    for budget in ("flops=0.7", "flops=0.4", "params=0.5"):
        began = time.process_time()
        profile.plan(budget)
        further.append(time.process_time() - began)
    return {"first": first, "further": further, "share": max(further) / first}


def sweep(weights: str) -> dict[str, Any]:
    """Processor seconds of a plan of `sequential` at half of the FLOPs from 512 images; on 1,024 images of validation
    the squared change of the outputs as a share of their variance, and how often the largest is the same."""
    import rankfold as rf
    from rankfold import zoo
    from rankfold.pipeline import calibration_part

    torch.set_num_threads(1)
    data, network = zoo.load_data("cifar10"), zoo.model("resnet56")
    zoo.load_weights(network, weights)
    part = calibration_part(data.train, 512, 0)
    began = time.process_time()
    plan = rf.plan(network.eval(), "flops=0.5", "sequential", part)
    seconds = time.process_time() - began
    small = rf.apply_(copy.deepcopy(network), plan).eval()
    few = data.validation.take(1024, torch.Generator().manual_seed(0))
    with torch.no_grad():
        was, now = (torch.cat([m(x) for x in few.normalize(few.inputs).split(64)]) for m in (network, small))
    moved = (was - now).square().sum() / (was - was.mean(0)).square().sum()
    same = (was.argmax(1) == now.argmax(1)).float().mean()
    return {"seconds": round(seconds, 1), "moved": round(moved.item(), 6), "same": round(same.item(), 4)}


def inputs(folder: Path) -> dict[str, Any]:
    """A trained digits-cnn, a resnet56 drawn from a seed with BatchNorm statistics of noise, and a plan."""
    from safetensors.torch import save_file

    import rankfold as rf
    from rankfold import zoo

    torch.set_num_threads(1)
    digits = zoo.model("digits-cnn")
    rf.fit(digits, zoo.load_data("digits").train, None, rf.Recipe(epochs=3, batch_size=64, learning_rate=0.05))
    save_file(digits.state_dict(), folder / "digits.safetensors")
    rf.plan(digits.eval(), "flops=0.5", "truncate", example=zoo.example_input("digits-cnn")).save(folder / "plan.json")
    network, noise = zoo.model("resnet56"), torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    with torch.no_grad():
        for _ in range(4):
            network(torch.randn(128, 3, 32, 32, generator=noise))
    save_file(network.state_dict(), folder / "resnet56.safetensors")
    return {}


def main() -> None:
    task, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "inputs": lambda: inputs(Path(arguments[0])),
        "counts": lambda: counts(arguments),
        "stages": lambda: stages(arguments),
        "second": lambda: second(arguments[0]),
        "sweep": lambda: sweep(arguments[0]),
    }
    found = tasks[task]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
