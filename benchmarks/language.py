"""Language models: excess of log perplexity at equal size, beside whitening with uniform ranks.

    RANKFOLD_DATA=... python benchmarks/language.py                                         # stories260k
    python benchmarks/language.py --model FOLDER --calibrate valid.npy --test test.npy      # any other one

Baseline: what SVD-LLM does first, written plainly below. Every matrix of the decoder is multiplied by the Cholesky root
of the second moment of its inputs, truncated, and multiplied back; the same share of the parameters is kept in each.
Ours: one shot (`rankfold.plan`) or, with `--method sequential`, the sweep; then `--steps` steps of `rankfold.tune_` of
`--step-windows` windows. "kept" counts
the matrices of the decoder alone; the head and the embedding stay. Perplexity: windows that do not overlap, the first
token of each not predicted. Excess: log perplexity less that of the original. Seconds are of processor time.

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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import rankfold as rf

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


def rows(arguments: argparse.Namespace, model: nn.Module, train: Tensor, test: Tensor) -> Any:
    inside = sum(layer.weight.numel() for layer in matrices(model).values())
    whole = sum(p.numel() for p in model.parameters())
    dense = judged(model, model, test)
    yield {"what": "original", **dense}
    for seed in arguments.seeds:
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        calibration = train[drawn[: arguments.windows]]
        tuning = [
            {"input_ids": ids} for ids in train[drawn[: max(arguments.windows, arguments.tune_windows)]].split(BATCH)
        ]
        batches = [{"input_ids": ids} for ids in calibration.split(BATCH)]
        began = time.process_time()
        how = rf.Calibration(samples=len(calibration), batch_size=BATCH)
        known = rf.profile(model, batches, method=arguments.method, calibration=how)
        seconds = time.process_time() - began
        for keep in arguments.kept:
            about = {"seed": seed, "kept": keep}
            base = judged(whitened(model, calibration, keep), model, test)
            excess = base["log"] - dense["log"]
            yield about | {"what": "whitening, uniform ranks", "excess": excess, **base}
            began = time.process_time()
            plan = known.plan(f"params={(whole - inside + keep * inside) / whole}")
            small = rf.apply_(copy.deepcopy(model), plan, known)
            spent = seconds + time.process_time() - began
            found = judged(small, model, test)
            forms = dict(Counter(entry.form.value for entry in plan.entries))
            yield about | {
                "what": WHAT[arguments.method], "excess": found["log"] - dense["log"], **found,
                "of baseline": (found["log"] - dense["log"]) / excess, "forecast": plan.forecast,
                "probe": plan.calibration.get("probe"), "metric": plan.calibration.get("metric", "fisher"),
                "forms": forms, "seconds": spent,
            }  # fmt: skip
            if not arguments.steps:
                continue
            began = time.process_time()
            (told,) = rf.tune_(
                small, model, tuning, objective=rf.CausalLanguageModel(), steps=arguments.steps, samples=None,
                batch_size=arguments.step_windows, learning_rate=arguments.rate,
            )  # fmt: skip
            spent += time.process_time() - began
            found = judged(small, model, test)
            yield about | {
                "what": "tuned", "excess": found["log"] - dense["log"], **found, "step": told.step,
                "of baseline": (found["log"] - dense["log"]) / excess, "held-out kl": told.after, "seconds": spent,
            }  # fmt: skip


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
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path)
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
    found = []
    for row in rows(arguments, model, train, test):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        found.append(row)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
