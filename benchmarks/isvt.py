"""Iterative performance-preserving truncation (ISVT): how long it takes, and how much faster than done plainly.

    RANKFOLD_DATA=... python benchmarks/isvt.py --weights resnet20.th --threads 2 --out isvt.json

Two parts, in one run:

steps     the first `--steps` steps, taken in turns: plainly (for every layer its truncated weight is put in place and
          all samples go through the network) and by rankfold; both must choose the same layer and the same rank
complete  rankfold down to `--keep` of the parameters, then the accuracy on the validation split, without any
          training: as truncated, and with BatchNorm statistics corrected on training images

The plain way costs the same at every step, so its time for the complete run is the number of steps times its mean.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankfold import zoo
from rankfold.compress.applying.apply import apply_
from rankfold.compress.methods import method_named
from rankfold.compress.planning.candidates import Candidate, Counter, decompose, options
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Params
from rankfold.compress.ranks.iterative import Step, start, truncations
from rankfold.compress.ranks.options import Option
from rankfold.compress.ranks.rules import Iterative
from rankfold.compress.ranks.sampling import draw, join
from rankfold.compress.repair.batchnorm import reestimate_
from rankfold.compress.sensitivity import relative_energy
from rankfold.compress.trial import multiplied_out
from rankfold.costs import trace
from rankfold.sites import Form, sites
from rankfold.train import evaluate


def quiet(what: str, done: int, total: int) -> None:
    pass


def problem(model: nn.Module, example: Tensor, keep: float):
    """What the planner hands to the iterative rule: candidates, choices, limits."""
    found = sites(model)
    candidates = decompose(model, found, method_named("truncate"), None, quiet).candidates
    counter = Counter(trace(model, example, found)[1], len(example), {site.name: 4 for site in found})
    prices = relative_energy([candidate for group in candidates.values() for candidate in group])
    choices = options(found, candidates, prices, (Params(keep),), (Params(keep),), counter)
    total = sum(p.numel() for p in model.parameters())
    spared = total - sum(group[0].costs[0] for group in choices.values())
    return candidates, choices, (keep * total - spared,)


def params(candidate: Candidate, option: Option) -> int:
    layer = candidate.site.layer
    return layer.params(option.form, option.rank, layer.has_bias if option.form is Form.KEEP else candidate.bias)


@torch.no_grad()
def plain_step(
    model: nn.Module, candidates, choices, picked: dict[str, Option], batch, step: int
) -> tuple[str, Option]:
    """The step that appendix A of the LoRITa paper describes, as it is written there. ``model`` holds ``picked``."""
    images, labels = batch
    best = None
    for site, group in choices.items():
        candidate = candidates[site][0]
        here = params(candidate, picked[site])
        lower = [o for o in group if o.form is candidate.form and params(candidate, o) <= here - step]
        if not lower:
            continue
        option = max(lower, key=lambda o: o.rank)
        module = model.get_submodule(site)
        kept = module.weight.detach().clone()
        module.weight.copy_(multiplied_out(module, candidate, option.rank, kept, module.bias)[0])
        loss = float(F.cross_entropy(model(images), labels))
        module.weight.copy_(kept)
        if best is None or loss < best[0]:
            best = loss, site, option
    _, site, option = best
    module = model.get_submodule(site)
    module.weight.copy_(multiplied_out(module, candidates[site][0], option.rank, module.weight, module.bias)[0])
    return site, option


def compare(model: nn.Module, task, samples, rule: Iterative, most: int, clock: Callable[[], float]) -> dict:
    """Seconds of each step, taken in turns on two copies of the model."""
    candidates, choices, limits = task
    other, picked, batch = copy.deepcopy(model), start(choices), join(samples)
    seconds: dict[str, list[float]] = {"plain": [], "rankfold": []}
    begun = clock()

    def watch(step: Step) -> bool:
        nonlocal begun
        seconds["rankfold"].append(clock() - begun)
        begun = clock()
        chosen = plain_step(other, candidates, choices, picked, batch, rule.step)
        seconds["plain"].append(clock() - begun)
        if chosen != (step.site, step.option):
            raise SystemExit(f"step {len(seconds['plain'])}: {chosen} done plainly, {step} by rankfold")
        picked[step.site] = step.option
        times = ", ".join(f"{way} {values[-1]:.2f} s" for way, values in seconds.items())
        print(f"step {len(seconds['plain'])}: {step.site} to rank {step.option.rank}, loss {step.loss:.4f}; {times}")
        begun = clock()
        return len(seconds["plain"]) < most

    truncations(model, candidates, choices, limits, samples, rule, watch)
    return seconds


def complete(model: nn.Module, data, keep: float, rule: Iterative, clock: Callable[[], float]) -> dict:
    times: list[float] = []

    def tell(what: str, done: int, total: int) -> None:
        times.append(clock())
        if what == "truncating" and len(times) % 25 == 0:
            print(f"{done} % of the way after {times[-1] - begun:.1f} s", flush=True)

    begun = clock()
    result = plan(model, Params(keep), "truncate", data.train, rule=rule, progress=tell)
    seconds = clock() - begun
    small = apply_(copy.deepcopy(model), result)
    truncated = evaluate(small, data.validation).accuracy
    reestimate_(small, model, data.train)
    return {
        "seconds": seconds,
        "steps": len(times) - len(sites(model).reducible),
        "params": result.after.params / result.before.params,
        "flops": result.after.flops / result.before.flops,
        "validation accuracy": {
            "dense": evaluate(model, data.validation).accuracy,
            "truncated": truncated,
            "BatchNorm corrected": evaluate(small, data.validation).accuracy,
        },
        "ranks": {entry.site: entry.rank for entry in result.changed},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.4, help="fraction of the parameters")
    parser.add_argument("--steps", type=int, default=5, help="steps that are also taken plainly; 0: none")
    parser.add_argument("--counted", choices=("stored", "values"), default="stored", help="what a step counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds: on a busy machine")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    model = zoo.model(asked.model).eval()
    zoo.load_weights(model, asked.weights)
    data, rule = zoo.load_data(zoo.default_data(asked.model)), Iterative(counted=asked.counted)
    if asked.counted == "values" or not asked.steps:  # the plain way counts what is stored
        whole = complete(model, data, asked.keep, rule, clock)
        print(json.dumps(whole, indent=1))
        if asked.out:
            asked.out.write_text(json.dumps(whole, indent=1))
        return
    samples = draw(data.train, rule.samples, torch.Generator().manual_seed(rule.seed))
    seconds = compare(model, problem(model, join(samples[:1])[0], asked.keep), samples, rule, asked.steps, clock)
    # the first step also records the network and tries every layer both ways
    means = {way: sum(values[1:]) / len(values[1:]) for way, values in seconds.items()}
    whole = complete(model, data, asked.keep, rule, clock)
    whole["times faster"] = whole["steps"] * means["plain"] / whole["seconds"]
    result = {
        "threads": asked.threads,
        "clock": "processor" if asked.cpu_time else "wall",
        "seconds of a step": {**means, "times faster": means["plain"] / means["rankfold"]},
        "complete": whole,
    }
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps({**result, "steps": seconds}, indent=1))


if __name__ == "__main__":
    main()
