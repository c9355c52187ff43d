"""Quantised forms of a language model: what int8 factors cost, and mixtures of forms at the bytes of int4.

    RANKFOLD_DATA=... python benchmarks/quantised.py                                         # stories260k
    python benchmarks/quantised.py --model FOLDER --calibrate valid.npy --test test.npy      # any other one

All of it in bfloat16; bytes are fractions of those of the decoder's linear layers there (`of=sites`). Side by side:

- the pair of factors at `--kept` of the parameters, and the very same factors in int8, which take half its bytes;
- int4 rounded to nearest with groups of 64, written plainly below: every group by its largest entry, no data;
- the best mixture of all forms within each of `--bytes`, and the best of what is left without int8 or without residual.

With `--only` in the layers of that name alone, of which "bytes" are then fractions. Perplexity as in
`benchmarks/language.py`, of the bfloat16 numbers computed in float32; "bytes" are measured. Calibration windows are
drawn with each seed. Seconds are of processor time.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language import BATCH, matrices, windows
from torch import Tensor, nn

import rankfold as rf
from rankfold.costs import storage
from rankfold.sites import fits

GROUP = 64
# of all forms, those that a mixture does without
MIXTURES: dict[str, set[rf.Form]] = {
    "all forms": set(),
    "without int8": {rf.Form.INT8},
    "without residual": {form for form in rf.Form if form.over_base},
    "residual alone": {form for form in rf.Form if not form.over_base and form is not rf.Form.KEEP},
}


@torch.no_grad()
def judged(model: nn.Module, test: Tensor) -> dict[str, float]:
    """Perplexity with its standard error over the windows; see `benchmarks/language.py`."""
    losses: list[float] = []
    for ids in test.split(BATCH):
        now = model(ids).logits[:, :-1].log_softmax(-1)
        losses += (-now.gather(-1, ids[:, 1:, None])).squeeze(-1).mean(1).tolist()
    mean, error = float(np.mean(losses)), float(np.std(losses, ddof=1) / len(losses) ** 0.5)
    return {"log": mean, "perplexity": math.exp(mean), "error": math.exp(mean) * error}


def chosen(model: nn.Module, only: str) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in matrices(model).items() if fits(name, only)}


@torch.no_grad()
def nearest(model: nn.Module, only: str) -> nn.Module:
    """The linear layers of the decoder rounded to int4, symmetric, in groups of 64."""
    small = copy.deepcopy(model)
    for layer in chosen(small, only).values():
        for group in layer.weight.split(GROUP, 1):
            step = (group.float().abs().amax(-1, keepdim=True) / 7).to(group.dtype).float()
            group.copy_((group.float() / step).round().clamp(-8, 7) * step)
    return small


def without(known: Any, forms: set[rf.Form]) -> Any:
    """A profile that knows nothing of some forms."""
    left = {name: [each for each in group if each.form not in forms] for name, group in known.candidates.items()}
    items = tuple(replace(site, forms=site.forms - forms) for site in known.sites)
    others = {name: without(each, forms) for name, each in known.others.items()}
    return replace(known, candidates=left, sites=replace(known.sites, items=items), others=others)


def rows(arguments: argparse.Namespace, model: nn.Module, train: Tensor, test: Tensor) -> Iterator[dict[str, Any]]:
    layers = chosen(model, arguments.only).values()
    inside = sum(layer.weight.numel() for layer in layers)
    whole, total = storage(model)
    dense = judged(copy.deepcopy(model).float(), test)

    def measured(small: nn.Module) -> dict[str, Any]:
        found = judged(copy.deepcopy(small).float(), test)
        return {"excess": found["log"] - dense["log"], **found}

    def share(small: nn.Module) -> float:
        return (storage(small)[1] - total + 2 * inside) / (2 * inside)

    yield {"what": "original", **dense}
    plain = nearest(model, arguments.only)
    scales = sum(-(-layer.in_features // GROUP) * layer.out_features for layer in layers)
    yield {"what": "int4 to nearest", "bytes": (inside / 2 + 2 * scales) / (2 * inside), **measured(plain)}
    for seed in arguments.seeds:
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        batches = [{"input_ids": ids} for ids in train[drawn[: arguments.windows]].split(BATCH)]
        began = time.process_time()
        how = rf.Calibration(samples=arguments.windows, batch_size=BATCH)
        where = lambda name, module: fits(name, arguments.only)  # noqa: E731
        known = rf.profile(model, batches, forms=arguments.forms or "all", where=where, calibration=how)
        yield {"seed": seed, "what": "profile", "seconds": time.process_time() - began}
        for kept in arguments.kept:
            plan = without(known, set(rf.Form) - {rf.Form.FACTORED, rf.Form.KEEP}).plan(
                f"params={(whole - inside + kept * inside) / whole}"
            )
            turned = tuple(
                rf.Entry(**(vars(each) | {"form": rf.Form.INT8})) if each.form is rf.Form.FACTORED else each
                for each in plan.entries
            )
            for what, made in (("factored", plan), ("the same in int8", plan.with_entries(turned))):
                small = rf.apply_(copy.deepcopy(model), made, known)
                changed = [small.get_submodule(each.site) for each in plan.changed]
                stored = sum(storage(layer)[1] for layer in changed)
                yield {"seed": seed, "what": what, "kept": kept, "bytes of changed": stored, **measured(small)}
        for asked in arguments.bytes:
            for what, left_out in list(MIXTURES.items())[: arguments.mixtures]:
                try:
                    plan = without(known, left_out).plan([f"bytes={asked}", "of=sites"])
                except rf.BudgetError:
                    yield {"seed": seed, "what": what, "asked": asked, "bytes": "cannot be had"}
                    continue
                small = rf.apply_(copy.deepcopy(model), plan, known)
                assert storage(small)[1] == plan.after.bytes
                yield {
                    "seed": seed, "what": what, "asked": asked, "bytes": share(small), "forecast": plan.forecast,
                    "metric": plan.calibration.get("metric", "fisher"),
                    "forms": dict(Counter(each.form.value for each in plan.entries)), **measured(small),
                }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder that transformers reads; stories260k by default")
    parser.add_argument("--calibrate", type=Path, help="tokens to calibrate on, .npy")
    parser.add_argument("--test", type=Path, help="tokens to test on, .npy")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.8])
    parser.add_argument("--only", default="*", help="names of the layers that take part; all of the decoder by default")
    parser.add_argument("--mixtures", type=int, default=len(MIXTURES), help="how many of the mixtures are made")
    parser.add_argument("--bytes", type=float, nargs="*", default=[0.266, 0.3])
    parser.add_argument("--forms", nargs="+", help="those that are decomposed; all of them by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--test-windows", type=int, default=16)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    from transformers import AutoModelForCausalLM

    arguments = parsed()
    if arguments.model is None:
        folder = Path(os.environ["RANKFOLD_DATA"]) / "stories260k"
        tokens = np.load(folder / "tokens.npy")
        train = windows(tokens[:300_000], arguments.length)
        test = windows(tokens[-arguments.test_windows * arguments.length :], arguments.length)
    else:
        folder = arguments.model
        train, test = (windows(np.load(file), arguments.length) for file in (arguments.calibrate, arguments.test))
        test = test[: arguments.test_windows]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found = []
    for row in rows(arguments, model, train, test):
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        found.append(row)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
