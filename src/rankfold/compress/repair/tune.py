"""Short training of factors towards the original network, without labels: block after block, or the whole at once.

Fitted one after another the layers of a block are each at their own optimum; together they can still do better, through
the activations between them. Block after block, one is in memory at a time; the whole network comes nearer in the same
time where it fits, since errors of one block can be made good in another.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.batches import check_rereadable, forward, tensors_in
from rankfold.batches.parts import parts_of
from rankfold.compress.repair.blocks import blocks, differentiate, numbers, off, within
from rankfold.compress.repair.turning import RATE, Turning
from rankfold.compress.repair.whole import Steps, check_steps, gradients_of, trainable, tune_whole_
from rankfold.costs import evaluating
from rankfold.layers.rounded import is_whole
from rankfold.layers.shared import Shared
from rankfold.objectives import Objective, Teacher, objective_named
from rankfold.observe import Enough, after, before
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Progress, showing
from rankfold.sites import factored_layers, unwrap, without_fused_attention

TEXTS, SAMPLES = 2, 32  # of a step of the whole: texts have many answers each


@dataclass(frozen=True)
class Tuned:
    """One block: the squared error of its output over its energy, on all batches, before and after.

    Of the whole network (``block`` ""), tuned to an objective: the divergence from the original on held-out samples,
    and after how many steps it was least.
    """

    block: str
    before: float
    after: float
    step: int | None = None


@showing
@ordinarily
def tune_(
    model: nn.Module,
    original: nn.Module,
    data: Any,
    *,
    steps: int = 64,
    objective: Objective | str | None = None,
    train: str = "factors",
    by: str | None = None,
    learning_rate: float | None = None,
    samples: int | None = 2048,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[Tuned, ...]:
    """Train the factored layers of ``model``, block after block or all at once, to what ``original`` gives.

    All at once what is minimised is the divergence of the answers, for scores of classes or tokens
    KL(original ‖ compressed), and beside it, as heavy at the start, how far what each block gives is off; of blocks
    alone the squared error of their outputs. Labels are never looked at. A block is a module in a list or sequence of
    modules with factored layers in it; the whole model where there is none. What is not factored stays as it is,
    BatchNorm statistics too, and so do parameters that you froze (``requires_grad``), unless all that would be trained
    are frozen: then all are trained. Factors of frozen weights are frozen. Mode and gradients are left as found. Each
    step changes a factor by a share of its own norm, in every direction alike (K. Jordan et al., "Muon", 2024).

    Args:
        model: with factored layers, changed in place.
        original: that it was made from.
        data: inputs, with or without labels.
        steps: of each block, or of the whole; their rate falls to zero.
        objective: what the outputs mean; None: any floating output is compared.
        train: of the whole, "factors" or "all" parameters.
        by: "whole" or "blocks"; None: the whole with an objective, else blocks.
        learning_rate: the share of a factor's norm at the start; None: 0.005, for the whole at that times the root of
            what is lost at the start, up to 1: as far as weights are off, so long are the steps.
        samples: of ``data`` that are used.
        batch_size: of a step; with an objective by default 2 texts of a language model, each of many tokens, and 32
            samples of others, which say one thing each.
        progress: called as ``progress(what, done, total)`` as the work goes on.

    Returns:
        What was trained and what it gave. A block whose error has not fallen is left as it was, and so is one that no
        sample reaches in both networks, with a warning; of the whole the best of six looks at samples that are held
        back is kept, the start among them.

    Raises:
        ValueError: empty data, nothing is factored, less than one step or sample, the original is no network that the
            model was made from, or answers that cannot be differentiated.

    Cost: for each block one pass of both networks up to it, and ``steps`` steps of the block alone, with its inputs and
    outputs in memory; of the whole ``steps`` steps and as many forward passes of the original.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 16)
        >>> small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", data=x))
        >>> away = lambda: float((small(x) - net(x)).detach().square().mean())
        >>> before, _ = away(), rf.tune_(small, net, x, steps=20)
        >>> away() <= before
        True
    """
    for name, network in (("model", model), ("original", original)):
        if not isinstance(network, nn.Module):
            raise ValueError(
                f"{name} must be a network (nn.Module), such as rf.load reads, and is a {type(network).__name__}"
            )
    root, reference = unwrap(model), unwrap(original)
    check_rereadable(data)
    by = by or ("blocks" if objective is None else "whole")
    if by not in ("whole", "blocks"):
        raise ValueError(f"by must be 'whole' or 'blocks', got {by!r}")
    if train not in ("factors", "all") or (train == "all" and by == "blocks"):
        raise ValueError(
            f"train must be 'factors', or 'all' where the whole model is trained at once (by='whole'), got {train!r} "
            f"with by={by!r}"
        )
    layers = factored_layers(root)
    if not layers:
        if is_whole(root):
            raise ValueError(
                "the factors of this model are whole numbers (int8), which cannot be trained: compress in other "
                "forms (forms= without int8), or leave tuning out"
            )
        raise ValueError("nothing in this model is factored: compress it first")
    if root is reference:
        raise ValueError(
            "model and original are the same network, so that there is nothing to learn: apply_ changes a "
            "network in place, so give it a copy (copy.deepcopy), and the original here"
        )
    check_steps(steps, batch_size, samples, learning_rate)
    asked = objective_named(objective or Teacher())
    size = batch_size or (128 if objective is None else TEXTS if asked.by_token else SAMPLES)
    if by == "whole":
        chosen = root if train == "all" else nn.ModuleList(layers.values())
        how = Steps(steps, learning_rate, samples, size)
        way = tune_whole_(root, reference, trainable(chosen.parameters()), data, asked, how, progress)
        return (Tuned("", way.before, way.after, way.step),)
    told: list[Tuned] = []
    most = max(steps, 1) * size  # more samples are not met
    samples = most if samples is None else min(samples, most)
    names = blocks(root, tuple(layers))
    missing = next((name for name in names if name not in dict(reference.named_modules())), None)
    if missing is not None:
        raise ValueError(f"the original has no block {missing}: give the network that this model was made from")
    free = {id(parameter) for parameter in trainable(nn.ModuleList(layers.values()).parameters())}
    inside = {name: nn.ModuleList(_inside(layers, name)) for name in names}
    by_block = {name: [p for p in inside[name].parameters() if id(p) in free] for name in names}
    by_block = {name: trained for name, trained in by_block.items() if trained}
    for done, (name, trained) in enumerate(by_block.items()):
        told += _tune_block(root, reference, name, trained, data, steps, learning_rate, samples, size)
        if progress is not None:
            progress("tuning blocks", done + 1, len(by_block))
    return tuple(told)


def _inside(layers: Mapping[str, nn.Module], block: str) -> list[nn.Module]:
    """The layers of a block, less those that share a factor with one outside, which would change that one unseen."""
    outside = {id(m.first) for name, m in layers.items() if isinstance(m, Shared) and not within(name, block)}
    held = [module for name, module in layers.items() if within(name, block)]
    return [module for module in held if not (isinstance(module, Shared) and id(module.first) in outside)]


@dataclass(frozen=True)
class _Example:
    args: Any
    kwargs: Any
    wanted: list[Tensor]
    states: list[tuple[dict[str, Any], str, Any]]


def _tune_block(
    root: nn.Module, reference: nn.Module, name: str, trained: list[nn.Parameter], data: Any, steps: int,
    learning_rate: float | None, samples: int | None, batch_size: int,
) -> tuple[Tuned, ...]:  # fmt: skip
    """None where no sample reaches the block."""
    block = root.get_submodule(name)
    with ExitStack() as stack:
        for network in (root, reference):
            stack.enter_context(evaluating(network))
        stack.enter_context(without_fused_attention())
        examples = _examples(root, reference, name, data, samples, batch_size)
        if not examples:
            warnings.warn(
                f"{name}: no sample of the data reaches this block in both networks, so that it was not tuned: give "
                "data that reach it, or leave it as it is",
                stacklevel=5,
            )
            return ()
        before = _error(block, examples)
        kept = [parameter.detach().clone() for parameter in trained]
        with torch.enable_grad(), gradients_of(root, trained):
            optimizer = Turning(trained, lr=RATE if learning_rate is None else learning_rate)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(steps, 1))
            for step in range(steps):
                example = examples[step % len(examples)]
                loss = sum(_losses(block, example), torch.zeros(()))
                optimizer.zero_grad()
                differentiate(loss, "blocks")
                optimizer.step(loss.item)  # differentiated already
                schedule.step()
        after = _error(block, examples)
        if not after < before:
            with torch.no_grad():
                for parameter, value in zip(trained, kept, strict=True):
                    parameter.copy_(value)
            after = before
    return (Tuned(name, before, after),)


def _examples(
    root: nn.Module, reference: nn.Module, name: str, data: Any, samples: int | None, batch_size: int
) -> list[_Example]:
    """What the block is given in the compressed network, and what it gives in the original, of each batch that reaches
    it in both."""
    caught: dict[str, Any] = {}

    def given(module: nn.Module, args: tuple, kwargs: dict) -> None:
        caught["args"], caught["kwargs"] = copy.deepcopy((args, kwargs))
        caught["states"] = _states(module)
        raise Enough

    def gives(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        caught["output"] = [x.detach().clone() for x in numbers(output)]
        raise Enough

    with before(root, {name: given}), after(reference, {name: gives}, last=True):
        found, empty = [], True
        for batch in parts_of(data, batch_size, samples):
            empty = False
            caught.clear()
            for network in (root, reference):
                with suppress(Enough):
                    forward(network, batch)
            if "args" in caught and "output" in caught:
                found.append(_Example(caught["args"], caught["kwargs"], caught["output"], caught["states"]))
    if empty:
        raise ValueError("the calibration data is empty: give at least one batch")
    return found


def _states(block: nn.Module) -> list[tuple[dict[str, Any], str, Any]]:
    """What its modules keep from call to call beside parameters and buffers, as states of a recurrence that the network
    resets and the block does not."""
    held = [(vars(module), name, value) for module in block.modules() for name, value in vars(module).items()]
    return [(of, name, value) for of, name, value in held if value is None or any(True for _ in tensors_in(value))]


def _losses(block: nn.Module, example: _Example) -> Iterator[Tensor]:
    """Squared errors of the block's outputs, each over the energy that it should have."""
    args, kwargs = copy.deepcopy((example.args, example.kwargs))  # a cache of keys and values grows with each call
    for held, name, value in example.states:
        held[name] = value
    for x, wanted in zip(numbers(block(*args, **kwargs)), example.wanted, strict=True):
        if x.shape != wanted.shape:
            here, there = (" × ".join(map(str, each.shape)) for each in (x, wanted))
            raise ValueError(
                f"a {type(block).__name__} gives {here} numbers where that of the original gives {there}, so that "
                "nothing can be compared; its sizes depend on what is computed: leave tuning out"
            )
        yield off(x, wanted)


@torch.no_grad()
def _error(block: nn.Module, examples: list[_Example]) -> float:
    return sum(float(loss) for example in examples for loss in _losses(block, example)) / len(examples)
