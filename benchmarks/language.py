"""Language models: excess of log perplexity at equal size, beside whitening with uniform ranks.

    RANKFOLD_DATA=... python benchmarks/language.py -o DIR                                       # stories260k
    python benchmarks/language.py --model FOLDER --calibrate valid.npy --test test.npy -o DIR    # any other one

Baseline: what SVD-LLM does first, written plainly below. Every matrix of the decoder is multiplied by the Cholesky root
of the second moment of its inputs, truncated, and multiplied back; the same share of the parameters is kept in each.
Ours: one shot (`rankfold.plan`) or, with `--method sequential`, the sweep; then `--steps` steps of `rankfold.tune_` of
`--step-windows` windows. `--further N` goes on from there with N steps on as many other windows, twice: by an adapter
(`rankfold.restore_`) of `--adapter` of the numbers, and by all the factors (`rankfold.tune_`). "kept" counts
the matrices of the decoder alone; the head and the embedding stay. Perplexity: windows that do not overlap, the first
token of each not predicted. Excess: log perplexity less that of the original. Seconds are of processor time.
`--precision bfloat16`: of what is measured, planned and tuned, as that option of the commands; judged in single
precision. Everything that is finished is kept in `-o`: the same command goes on, and further seeds, sizes or steps use
it.

The tokens are arrays of integers. `--windows` windows to calibrate and tune on are drawn from the first file with each
seed; those to test on are the first ones of the other file (of `stories260k` the last ones of the same).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.compress.measured import Statistics
from rankfold.compress.statistics import calibrate
from rankfold.run.cells import Kept, run_cells
from rankfold.run.disk.files import write_atomically
from rankfold.train.step.precision import Arithmetic, arithmetic

BATCH = 4
WHAT = {"project": "one shot", "sequential": "sweep"}


def windows(tokens: np.ndarray, length: int) -> Tensor:
    whole = len(tokens) // length * length
    return torch.from_numpy(tokens[:whole].astype(np.int64)).reshape(-1, length)


@torch.no_grad()
def judged(model: nn.Module, original: nn.Module, test: Tensor) -> dict[str, float]:
    """Perplexity with its standard error over the windows, and nats of KL(original ‖ model) per token."""
    losses, lost = [], 0.0
    for ids in test.split(BATCH):
        now, then = (net(ids).logits[:, :-1].log_softmax(-1) for net in (model, original))
        losses += (-now.gather(-1, ids[:, 1:, None])).squeeze(-1).mean(1).tolist()
        lost += float((then.exp() * (then - now)).sum(-1).mean(1).sum())
    mean, error = float(np.mean(losses)), float(np.std(losses, ddof=1) / len(losses) ** 0.5)
    return {"log": mean, "perplexity": math.exp(mean), "error": math.exp(mean) * error, "kl": lost / len(test)}


def matrices(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the decoder: all but the head."""
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}


@torch.no_grad()
def whitened(model: nn.Module, calibration: Tensor, keep: float) -> nn.Module:
    """Whitening and uniform ranks: the baseline, without any of this package."""
    moments: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def gather(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1]).double()
            moments[name] = moments.get(name, 0) + rows.T @ rows

        return gather

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in matrices(model).items()]
    for ids in calibration.split(BATCH):
        model(ids)
    for each in hooks:
        each.remove()
    small = copy.deepcopy(model)
    for name, layer in matrices(small).items():
        (m, n), moment = layer.weight.shape, moments[name]
        root = torch.linalg.cholesky(moment + 1e-6 * moment.diagonal().mean() * torch.eye(n, dtype=torch.float64))
        rank = max(1, int(keep * m * n / (m + n)))
        u, s, vh = torch.linalg.svd(layer.weight.double() @ root, full_matrices=False)
        product = (u[:, :rank] * s[:rank]) @ torch.linalg.solve_triangular(root, vh[:rank], upper=False, left=False)
        layer.weight.copy_(product)
    return small


@dataclass(frozen=True)
class Original:
    title: str = "original"


@dataclass(frozen=True)
class Baseline:
    seed: int
    kept: float
    title: str = "whitened"


@dataclass(frozen=True)
class Measured:
    seed: int
    title: str = "moments"


@dataclass(frozen=True)
class Profiled:
    seed: int
    method: str
    title: str = "profile"


@dataclass(frozen=True)
class Made:
    seed: int
    method: str
    kept: float
    title: str = "made"


@dataclass(frozen=True)
class Tuned:
    seed: int
    method: str
    kept: float
    steps: int
    step_windows: int
    tune_windows: int
    rate: float | None = None
    by: str = "whole"
    title: str = "tuned"


@dataclass(frozen=True)
class Further:
    """From one tuned network on, by all its ``factors`` or by an ``adapter`` of a share of its numbers."""

    after: Tuned
    by: str
    steps: int
    adapter: float | None = None
    rate: float | None = None
    title: str = "further"


@dataclass
class Bench:
    """Every line is a cell that is kept in ``directory``; profiles and compressed networks stay beside them."""

    model: nn.Module
    train: Tensor
    test: Tensor
    windows: int
    directory: Path
    asked: dict[str, Any]
    precision: Arithmetic = "float32"

    def __post_init__(self) -> None:
        self.cells = Kept(self.do, self.directory, self.asked)
        self.inside = sum(layer.weight.numel() for layer in matrices(self.model).values())
        self.whole = sum(p.numel() for p in self.model.parameters())
        self.fresh: dict[Any, Any] = {}  # profiles of this run, which need not be read back

    def of(self, cell: Any) -> dict[str, Any]:
        (found,) = run_cells([cell], self.cells)
        return found

    def place(self, cell: Any) -> Path:
        return self.directory / self.cells.name(cell)

    def do(self, cell: Any, place: Path, progress: Any) -> dict[str, Any]:
        place.mkdir(parents=True, exist_ok=True)
        ways: dict[type, Any] = {
            Original: self.original, Baseline: self.baseline, Measured: self.moments, Profiled: self.profiled,
            Made: self.made, Tuned: self.tuned, Further: self.further,
        }  # fmt: skip
        return ways[type(cell)](cell, place)

    def computing(self) -> AbstractContextManager[None]:
        return arithmetic(self.precision, torch.device("cpu"))

    def drawn(self, seed: int, count: int) -> Tensor:
        return self.train[torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[:count]]

    def calibration(self, seed: int) -> list[dict[str, Tensor]]:
        return [{"input_ids": ids} for ids in self.drawn(seed, self.windows).split(BATCH)]

    def against(self, cell: Any, found: dict[str, float]) -> dict[str, Any]:
        dense = self.of(Original())["log"]
        base = self.of(Baseline(cell.seed, cell.kept))["log"]
        excess = found["log"] - dense
        return {**found, "excess": excess, "of baseline": excess / (base - dense)}

    def original(self, cell: Original, place: Path) -> dict[str, Any]:
        return {"what": "original", **judged(self.model, self.model, self.test)}

    def baseline(self, cell: Baseline, place: Path) -> dict[str, Any]:
        found = judged(whitened(self.model, self.drawn(cell.seed, self.windows), cell.kept), self.model, self.test)
        return {"what": "whitening, uniform ranks", **found, "excess": found["log"] - self.of(Original())["log"]}

    def moments(self, cell: Measured, place: Path) -> dict[str, Any]:
        with self.computing():
            known = calibrate(
                self.model, self.calibration(cell.seed), rf.sites(self.model), samples=self.windows, batch_size=BATCH,
                objective=rf.CausalLanguageModel(),
            )  # fmt: skip
        write_atomically(place / "statistics", known.to_bytes(parts=True))
        return {"what": "moments"}

    def profiled(self, cell: Profiled, place: Path) -> dict[str, Any]:
        spent = self.of(Measured(cell.seed))["cpu_seconds"]
        known = self.measured(cell)
        if cell.method == "project":  # profiles of fits are no files
            known.save(place / "profile")
        return {"what": "profile", "moments": spent}

    def measured(self, cell: Profiled) -> rf.Profile:
        statistics = Statistics.load(self.place(Measured(cell.seed)) / "statistics")
        how = rf.Calibration(samples=self.windows, batch_size=BATCH, statistics=statistics)
        with self.computing():
            self.fresh[cell] = rf.profile(self.model, self.calibration(cell.seed), method=cell.method, calibration=how)
        return self.fresh[cell]

    def made(self, cell: Made, place: Path) -> dict[str, Any]:
        asked = Profiled(cell.seed, cell.method)
        told, file = self.of(asked), self.place(asked) / "profile"
        spent = told["cpu_seconds"] + told["moments"]
        known = self.fresh.get(asked)
        if known is None:
            data = self.calibration(cell.seed)
            known = rf.Profile.load(file, self.model, data) if file.exists() else self.measured(asked)
        began = time.process_time()
        with self.computing():
            plan = known.plan(f"params={(self.whole - self.inside + cell.kept * self.inside) / self.whole}")
            small = rf.apply_(copy.deepcopy(self.model), plan, known)
        spent += time.process_time() - began
        rf.save(small, plan, place / "small")
        return {
            "what": WHAT[cell.method], **self.against(cell, judged(small, self.model, self.test)),
            "forecast": plan.forecast, "probe": plan.calibration.get("probe"),
            "metric": plan.calibration.get("metric", "fisher"),
            "forms": dict(Counter(entry.form.value for entry in plan.entries)), "seconds": spent,
        }  # fmt: skip

    def tuned(self, cell: Tuned, place: Path) -> dict[str, Any]:
        asked = Made(cell.seed, cell.method, cell.kept)
        spent = self.of(asked)["seconds"]
        loaded: Any = rf.load(self.place(asked) / "small")
        small = loaded.model
        drawn = self.drawn(cell.seed, max(self.windows, cell.tune_windows))
        data = [{"input_ids": ids} for ids in drawn.split(cell.step_windows)]
        began = time.process_time()
        with self.computing():
            told, *_ = rf.tune_(
                small, self.model, data, objective=rf.CausalLanguageModel(), steps=cell.steps, samples=None,
                batch_size=cell.step_windows, learning_rate=cell.rate, by=cell.by,
            )  # fmt: skip
        spent += time.process_time() - began
        rf.save(small, loaded.plan, place / "small")
        found = self.against(cell, judged(small, self.model, self.test))
        return {"what": f"tuned, {cell.by}", **found, "step": told.step, "seconds": spent}

    def further(self, cell: Further, place: Path) -> dict[str, Any]:
        tuned, start = cell.after, self.of(cell.after)
        small: Any = rf.load(self.place(tuned) / "small").model
        met = max(self.windows, tuned.tune_windows)
        drawn = self.drawn(tuned.seed, met + cell.steps * tuned.step_windows)[met:]  # windows that were not met before
        data = [{"input_ids": ids} for ids in drawn.split(tuned.step_windows)]
        how: dict[str, Any] = {"steps": cell.steps, "samples": None, "batch_size": tuned.step_windows}
        how |= {"objective": rf.CausalLanguageModel()} | ({} if cell.rate is None else {"learning_rate": cell.rate})
        began = time.process_time()
        if cell.by == "adapter":
            told: Any = rf.restore_(small, self.model, data, params=cell.adapter, **how)
        else:
            told, *_ = rf.tune_(small, self.model, data, **how)
        spent = time.process_time() - began
        found = self.against(tuned, judged(small, self.model, self.test))
        won = {"won back": 1 - found["excess"] / start["excess"], "won back of the KL": 1 - found["kl"] / start["kl"]}
        held = {"held out before": told.before, "held out after": told.after, "step": told.step, "seconds": spent}
        return {"what": f"further, by {cell.by}", **found, **won, "windows": len(drawn), **held}


def cells(arguments: argparse.Namespace) -> Iterator[Any]:
    yield Original()
    for seed in arguments.seeds:
        yield Measured(seed)  # by themselves, so that no other cell's time holds theirs
        yield Profiled(seed, arguments.method)
        for kept in arguments.kept:
            yield Baseline(seed, kept)
            yield Made(seed, arguments.method, kept)
            if arguments.steps:
                tuned = Tuned(
                    seed, arguments.method, kept, arguments.steps, arguments.step_windows, arguments.tune_windows,
                    arguments.rate, arguments.by,
                )  # fmt: skip
                yield tuned
                if arguments.further:
                    yield Further(tuned, "adapter", arguments.further, arguments.adapter, arguments.adapter_rate)
                    yield Further(tuned, "factors", arguments.further)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder that transformers reads; stories260k by default")
    parser.add_argument("--calibrate", type=Path, help="tokens to calibrate and tune on, .npy")
    parser.add_argument("--test", type=Path, help="tokens to test on, .npy")
    parser.add_argument("--method", choices=WHAT, default="project")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.8, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--tune-windows", type=int, default=0, help="further ones to tune on")
    parser.add_argument("--test-windows", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--step-windows", type=int, default=8)
    parser.add_argument("--rate", type=float, help="of tuning; by default what tune_ takes")
    parser.add_argument("--further", type=int, default=0, help="steps after those, by an adapter and by all factors")
    parser.add_argument("--adapter", type=float, default=0.01, help="share of the numbers that the adapter may have")
    parser.add_argument("--adapter-rate", type=float, help="of the adapter; by default what restore_ takes")
    parser.add_argument("--by", choices=("whole", "blocks"), default="whole", help="what is tuned at once")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("-o", "--out", type=Path, required=True, help="directory of what is finished")
    return parser.parse_args()


def main() -> None:
    from transformers import AutoModelForCausalLM

    arguments = parsed()
    if arguments.model is None:
        folder = Path(os.environ["RANKFOLD_DATA"]) / "stories260k"
        tokens = np.load(folder / "tokens.npy")
        train, test = windows(tokens[:300_000], arguments.length), windows(tokens[360_000:], arguments.length)
        test = windows(tokens[-arguments.test_windows * arguments.length :], arguments.length)
    else:
        folder = arguments.model
        train, test = (windows(np.load(file), arguments.length) for file in (arguments.calibrate, arguments.test))
        test = test[: arguments.test_windows]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    files = {
        name: getattr(arguments, name) and str(getattr(arguments, name).name) for name in ("model", "calibrate", "test")
    }
    asked = {name: getattr(arguments, name) for name in ("length", "windows", "test_windows")} | files
    asked |= {"precision": arguments.precision} if arguments.precision != "float32" else {}
    bench = Bench(model, train, test, arguments.windows, arguments.out, asked, arguments.precision)
    for cell in cells(arguments):
        row = bench.of(cell)
        about = {name: row["case"][name] for name in ("seed", "kept") if name in row["case"]}
        told = about | {key: value for key, value in row.items() if key != "case"}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}), flush=True)


if __name__ == "__main__":
    main()
