"""The table of README in one run: ResNet20 on CIFAR-10 at half of its FLOPs without training, beside what others do.

    python benchmarks/readme.py WEIGHTS [--kept 0.5] [--images 10000] [--threads 1]

Peers, written plainly below or by method `truncate`: truncation of the same fraction in each layer (LSVT) and of all
spectra ranked together (GSVT), as LoRITa compares with; whitening by the Cholesky root of the second moment of the
inputs, the same share in each layer, as SVD-LLM and BALF begin. All use the same 2,048 training images. "as it is" is
the network that such a method leaves; "corrected" the same after `rankfold.reestimate_` on 512 images, which rankfold's
own rows always have. Accuracy is on the first --images of the test split, by which nothing is chosen. Rows that are
stored already are not measured again: delete benchmarks/results/readme.json to begin anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold import zoo
from rankfold.pipeline import calibration_part

OUT = Path(__file__).parent / "results" / "readme.json"
SAMPLES, SEED = 2048, 0
Made = tuple[nn.Module, float, float]  # the network, and its FLOPs and parameters as parts of the original's


def planned(original: nn.Module, data: Any, kept: float, method: str, rule: str) -> Made:
    plan = rf.plan(original, rf.Flops(kept), method, data, rule=rule, calibration=rf.Calibration(SAMPLES))
    small = rf.apply_(copy.deepcopy(original), plan)
    return small, plan.after.flops / plan.before.flops, plan.after.params / plan.before.params


@torch.no_grad()
def whitened(original: nn.Module, data: Any, kept: float) -> Made:
    """Of every convolution, without any of this package; the products are put back as dense weights."""
    convolutions = {name: layer for name, layer in original.named_modules() if isinstance(layer, nn.Conv2d)}
    moments: dict[str, Tensor] = {}
    sizes: dict[str, torch.Size] = {}

    def hook(name: str) -> Callable[..., None]:
        def gather(layer: nn.Conv2d, args: tuple[Tensor, ...]) -> None:
            sizes[name] = args[0].shape[2:]
            rows = nn.functional.unfold(args[0], layer.kernel_size, padding=layer.padding, stride=layer.stride)
            rows = rows.transpose(1, 2).reshape(-1, rows.shape[1])[::7].double()
            moments[name] = moments.get(name, 0) + rows.T @ rows

        return gather

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in convolutions.items()]
    for images, _ in data.batches(128):
        original(images)
    for each in hooks:
        each.remove()
    small, saved, gone = copy.deepcopy(original), 0, 0
    cost = rf.model_cost(original, torch.zeros(1, 3, 32, 32))
    for name, layer in convolutions.items():
        weight = small.get_submodule(name).weight
        matrix = weight.flatten(1).double()
        (m, n), moment = matrix.shape, moments[name]
        root = torch.linalg.cholesky(moment + 1e-6 * moment.diagonal().mean() * torch.eye(n, dtype=torch.float64))
        rank = max(1, int(kept * m * n / (m + n)))
        u, s, vh = torch.linalg.svd(matrix @ root, full_matrices=False)
        product = (u[:, :rank] * s[:rank]) @ torch.linalg.solve_triangular(root, vh[:rank], upper=False, left=False)
        weight.copy_(product.view_as(weight))
        gone += m * n - rank * (m + n)
        alone = rf.model_cost(nn.Sequential(layer), torch.zeros(1, layer.in_channels, *sizes[name]))
        saved += alone.flops * (1 - rank * (m + n) / (m * n))
    return small, 1 - saved / cost.flops, 1 - gone / cost.params


WAYS: dict[str, tuple[bool, Callable[..., Made]]] = {  # whether it is also judged as it is
    "truncation, the same part of each layer": (True, lambda *a: planned(*a, "truncate", "local")),
    "truncation, spectra ranked together": (True, lambda *a: planned(*a, "truncate", "global")),
    "whitening, the same share of each layer": (True, whitened),
    "project": (False, lambda *a: planned(*a, "project", "optimal")),
    "sequential": (False, lambda *a: planned(*a, "sequential", "optimal")),
}


def rows(given: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    data, original = zoo.load_data("cifar10"), zoo.model("resnet20")
    zoo.load_weights(original, given.weights)
    original.eval()
    test = data.test.subset(torch.arange(given.images))
    part = calibration_part(data.train, SAMPLES, SEED)
    if "original" not in done:
        yield {"what": "original", "flops": 1.0, "params": 1.0, "corrected": rf.evaluate(original, test).accuracy}
    for what, (judged, make) in WAYS.items():
        if what in done:
            continue
        began = time.process_time()
        small, flops, params = make(original, part, given.kept)
        row: dict[str, Any] = {"what": what, "flops": flops, "params": params, "seconds": time.process_time() - began}
        if judged:
            row["as it is"] = rf.evaluate(small, test).accuracy
        rf.reestimate_(small, original, data.train, samples=512)
        yield row | {"corrected": rf.evaluate(small, test).accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--kept", type=float, default=0.5)
    parser.add_argument("--images", type=int, default=10_000, help="of the test split, the first")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    stored = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"rows": []}
    for row in rows(given, {row["what"] for row in stored["rows"]}):
        stored = {
            "command": f"python benchmarks/readme.py WEIGHTS --images {given.images}", "seeds": [SEED],
            "images": given.images, "kept": given.kept, "versions": {"torch": torch.__version__},
            "rows": [*stored["rows"], row],
        }  # fmt: skip
        OUT.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{'':42}{'FLOPs removed':>14}{'as it is':>11}{'corrected':>11}")
    for row in stored["rows"]:
        as_it_is = f"{100 * row['as it is']:.2f} %" if "as it is" in row else ""
        print(f"{row['what']:42}{100 * (1 - row['flops']):13.1f} %{as_it_is:>11}{100 * row['corrected']:9.2f} %")


if __name__ == "__main__":
    main()
