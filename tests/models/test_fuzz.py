"""Random networks: whatever is planned is what is done, it costs what is said, and what cannot be is said in words;
what is done with the result (saved and loaded, restored, trained on the manifold and folded) keeps it.

A short run always; a long one by ``RANKFOLD_FUZZ=300`` (so many networks, and ``RANKFOLD_FUZZ_SEED`` for others).
"""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from typing import Any

import torch
from dense import multiplied_out
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from random_networks import Network, Recipe, built, recipes
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import rankfold as rf
from rankfold import costs
from rankfold.batches import copied
from rankfold.objectives.answer import named_tensors

LONG = int(os.environ.get("RANKFOLD_FUZZ", "0"))
METHODS = ("truncate", "project", "sequential", "tucker", "cp", "nuclear", "relu")
SHORT = ("truncate", "project", "sequential", "tucker")
RESOURCES = ("params", "flops", "bytes", "energy")
NEAR = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 0.15}


def counted(model: nn.Module) -> tuple[int, int]:
    """Parameters and bytes, by their memory; a weight that is a whole number in a buffer is a parameter."""
    parameters = {p.data_ptr(): p for p in model.parameters() if p.numel()}
    held = {**parameters, **{b.data_ptr(): b for b in model.buffers() if b.numel()}}
    layers = [module for module in model.modules() if "codes" in module._buffers]
    eight = sum(layer.codes.numel() for layer in layers if layer.codes.dtype == torch.int8)
    four = sum(layer.in_features * layer.out_features for layer in layers if layer.codes.dtype == torch.uint8)
    return eight + four + sum(p.numel() for p in parameters.values()), sum(t.nbytes for t in held.values())


def multiplied(model: nn.Module, inputs: Tensor) -> int:
    """FLOPs as torch counts them, with nothing fused."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter, mkldnn = FlopCounterMode(display=False), torch.backends.mkldnn.flags(enabled=False)
    try:  # without gradients torch's counter fails on views of parameters
        with warnings.catch_warnings(), costs.evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            warnings.simplefilter("ignore")  # of torch, about a switch that it sets by the way
            with mkldnn, counter:
                copy.deepcopy(model).requires_grad_(False)(
                    inputs
                )  # for training a recurrent layer takes torch's kernel
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def answers(model: nn.Module, inputs: Tensor) -> list[tuple[str, Tensor]]:
    with costs.evaluating(model):
        return [(name, x) for name, x in named_tensors(model(inputs)) if x.is_floating_point()]


def state(model: nn.Module) -> dict[str, Any]:
    values = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    return {**values, "modes": [module.training for module in model.modules()], "hooks": hooks}


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(a, after[name]) if isinstance(a, Tensor) else a == after[name] for name, a in before.items()
    )


def check(recipe: Recipe) -> str:
    """``planned``, or in which words it was refused; AssertionError for whatever is wrong in silence."""
    try:
        network, inputs = built(recipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about even kernels with padding "same"
            answers(network, inputs[:2])
    except (RuntimeError, ValueError):
        assume(False)  # a kernel larger than what it meets
    before, one = state(network), inputs[:1]
    if recipe.then == "trained":
        return _trained(recipe, network, inputs)
    try:
        plan = rf.plan(network, recipe.budgets, recipe.method, inputs, example=one, forms=recipe.forms)
    except ValueError as error:
        plan, refused = None, str(error)
    assert unchanged(before, state(network))
    if plan is None:
        return _said(refused)
    small = rf.apply_(copied(network), plan)
    _costs(recipe, plan, network, small, one)
    _computes(recipe, network, small, inputs)
    kept = {name: module.training for name, module in network.named_modules()}
    assert all(kept[name] == module.training for name, module in small.named_modules() if name in kept)
    if recipe.then == "saved":
        _saved(plan, network, small, inputs)
    if recipe.then == "restored" and plan.changed:
        _restored(network, small, inputs)
    return "planned"


def _said(refused: str) -> str:
    assert "\n" not in refused
    return refused


def _saved(plan: rf.Plan, network: Network, small: nn.Module, inputs: Tensor) -> None:
    with tempfile.TemporaryDirectory() as place:
        again = rf.load(rf.save(small, plan, place), copied(network))
    assert again.plan == plan
    assert counted(again.model) == counted(small)
    for (_, a), (_, b) in zip(answers(small, inputs), answers(again.model, inputs), strict=True):
        assert torch.equal(a, b)


def _restored(network: Network, small: nn.Module, inputs: Tensor) -> None:
    """An adapter of the result merges at its ranks, and gives no worse answers on what is held back."""
    before, shapes, sizes = state(network), {n: v.shape for n, v in small.state_dict().items()}, counted(small)
    other = copied(small)
    try:
        found = rf.restore_(other, network, inputs, params=0.3, steps=2, batch_size=8)
    except ValueError as error:
        _said(str(error))
        assert unchanged(state(small), state(other))
        return
    assert found.after <= found.before
    assert {name: value.shape for name, value in other.state_dict().items()} == shapes
    assert counted(other) == sizes
    assert unchanged(before, state(network))
    assert [m.training for m in other.modules()] == [m.training for m in small.modules()]


def _trained(recipe: Recipe, network: Network, inputs: Tensor) -> str:
    """Layers on the manifold of low rank, trained and folded: what they were, and what computes the same."""
    made = copied(network)
    try:
        rf.dlrt_(made, where="*", convolutions="tucker" if recipe.keep < 0.9 else "matrix")
    except ValueError as error:
        assert unchanged(state(network), state(made))
        return _said(str(error))
    optimizer = rf.Dlrt(made, torch.optim.SGD, lr=1e-3, window=1)
    modes = {name: module.training for name, module in network.named_modules()}
    for part in inputs.split(8):
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sum(x.float().square().mean() for _, x in named_tensors(made(part)) if x.is_floating_point()).backward()
        optimizer.step()
    dense, factored = rf.fold_(copied(made)), rf.fold_(copied(made), keep=True)
    assert list(dense.state_dict()) == list(network.state_dict())
    assert counted(dense) == counted(network)
    for folded in (dense, factored):
        assert all(modes[name] == module.training for name, module in folded.named_modules() if name in modes)
        for (_, a), (_, b) in zip(answers(made, inputs), answers(folded, inputs), strict=True):
            scale = float(a.double().norm().clamp_min(1e-3))
            assert float((a.double() - b.double()).norm()) <= NEAR[recipe.dtype] * scale
    return "planned"


def _costs(recipe: Recipe, plan: rf.Plan, network: Network, small: nn.Module, one: Tensor) -> None:
    assert (plan.before.params, plan.before.bytes) == counted(network)
    assert (plan.after.params, plan.after.bytes) == counted(small)
    assert plan.before.flops - plan.after.flops == multiplied(network, one) - multiplied(small, one)
    assert costs.check(plan.after, small, one) == ""
    if recipe.beside == "multiples":
        assert all(entry.rank % 2 == 0 for entry in plan.changed if entry.form is not rf.Form.DENSE)
    if recipe.resource == "energy":
        return
    spent = getattr(plan.after, recipe.resource) / getattr(plan.before, recipe.resource)
    if recipe.beside == "sites":
        spent = plan.kept_of_factorable(recipe.resource)
    assert spent <= recipe.keep + 1e-9


def _computes(recipe: Recipe, network: Network, small: nn.Module, inputs: Tensor) -> None:
    """The compressed network is the dense one with the products of the factors as weights."""
    dense = multiplied_out(copied(network).eval(), copied(small).eval())
    for (name, a), (same, b) in zip(answers(dense, inputs), answers(small, inputs), strict=True):
        assert name == same
        assert a.shape == b.shape
        scale = float(a.double().norm().clamp_min(1e-3))
        assert float((a.double() - b.double()).norm()) <= NEAR[recipe.dtype] * scale, name


@seed(int(os.environ.get("RANKFOLD_FUZZ_SEED", "0")))
@settings(
    max_examples=LONG or 20,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink) if LONG else (Phase.generate,),
    print_blob=False,
)
@given(recipe=recipes(METHODS if LONG else SHORT, RESOURCES))
def _random(seen: list[str], recipe: Recipe) -> None:
    seen.append(check(recipe))


def test_random_networks() -> None:
    """And a third of them at least is planned: a fuzzer that draws nothing that can be would find nothing."""
    seen: list[str] = []
    _random(seen)
    planned = sum(outcome == "planned" for outcome in seen)
    assert planned >= len(seen) // 3 > 0
    if LONG:
        print(f"{len(seen)} networks, {planned} planned, {len(seen) - planned} refused in words")
