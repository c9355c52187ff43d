"""What a sweep costs at several depths: processor seconds of planning, and perplexity, of a language model made deeper.

    RANKFOLD_DATA=... python benchmarks/sweep_depth.py --layers 4 16 32
    RANKFOLD_DATA=... PYTHONPATH=CHECKOUT/src python benchmarks/sweep_depth.py --layers 16    # an earlier release

The network is `stories260k` with further blocks between its own: random matrices of the same deviations, whose outputs
are a tenth, so that it stays a language model (its perplexity is printed). With fewer layers than it has, the first
ones are taken, and only the seconds mean anything. Calibrated on the first windows, tested on the last ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import rankfold as rf

try:
    from rankfold import Calibration
except ImportError:  # the first release
    from rankfold.compress.planner import Calibration  # type: ignore[no-redef]

LENGTH, BATCH = 256, 8


def deeper(base: Any, layers: int) -> nn.Module:
    """``base`` with so many blocks: its own, spread evenly, and others that change little."""
    config, own = copy.deepcopy(base.config), base.state_dict()
    few = config.num_hidden_layers
    config.num_hidden_layers = layers
    model = LlamaForCausalLM(config)
    places = (
        {round(i * (layers - 1) / (few - 1)): i for i in range(few)} if layers >= few else dict(enumerate(range(few)))
    )
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {name: value for name, value in own.items() if ".layers." not in name}
    for layer in range(layers):
        source = places.get(layer, layer % few)
        for name, value in own.items():
            if f".layers.{source}." not in name:
                continue
            if layer not in places and value.dim() == 2:
                value = value.std() * torch.randn(value.shape, generator=generator)
                value = value * (0.1 if "o_proj" in name or "down_proj" in name else 1.0)
            state[name.replace(f".layers.{source}.", f".layers.{layer}.")] = value
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def perplexity(model: nn.Module, test: Tensor) -> float:
    total = 0.0
    for ids in test.split(BATCH):
        scores = model(ids).logits[:, :-1].log_softmax(-1)
        total -= float(scores.gather(-1, ids[:, 1:, None]).sum())
    return math.exp(total / test[:, 1:].numel())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--kept", type=float, default=0.8, help="of the decoder's matrices")
    parser.add_argument("--method", default="sequential")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--test-windows", type=int, default=32)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(os.environ["RANKFOLD_DATA"]) / "stories260k"
    tokens = torch.from_numpy(np.load(folder / "tokens.npy").astype(np.int64))
    data = [{"input_ids": ids} for ids in tokens[: given.windows * LENGTH].view(-1, LENGTH).split(BATCH)]
    test = tokens[-given.test_windows * LENGTH :].view(-1, LENGTH)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for layers in given.layers:
        model = deeper(base, layers)
        whole = sum(p.numel() for p in model.parameters())
        inside = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)
        told: list[str] = []
        began = time.process_time()
        plan = rf.plan(
            model, f"params={(whole - inside + given.kept * inside) / whole}", given.method, data,
            calibration=Calibration(samples=given.windows, batch_size=BATCH),
            progress=lambda what, done, total, told=told: told.append(what),
        )  # fmt: skip
        seconds = time.process_time() - began
        small = rf.apply_(copy.deepcopy(model), plan)
        row = {
            "layers": layers, "kept": given.kept, "seconds": round(seconds, 1), "original": perplexity(model, test),
            "perplexity": perplexity(small, test), "passes": told[-1] if told else "", "notes": list(plan.notes),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
