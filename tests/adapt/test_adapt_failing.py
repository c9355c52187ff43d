"""A model whose adaptation failed or was interrupted stays whole, and so does one that has adapters of others."""

from __future__ import annotations

import copy

import pytest
import torch
from test_adapt_again import SETTINGS, data, network

import rankfold as rf
from rankfold import adapt as room
from rankfold.linalg import NonFiniteError
from rankfold.pipeline.adaptation import METHODS, AdaptSettings, adapt

peft = pytest.importorskip("peft")


def frozen_bias():
    model = network(2)
    model[0].bias.requires_grad_(False)
    return model


def state(model):
    return {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}


def same(one, other) -> bool:
    return list(one) == list(other) and all(
        one[name][0] == other[name][0] and torch.equal(one[name][1], other[name][1]) for name in one
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_interruption_leaves_the_model_as_it_was_and_the_same_call_goes_on(method, tmp_path):
    settings = AdaptSettings(method, params=150, epochs=3, batch_size=8, learning_rate=1e-2)
    whole, model, steps = frozen_bias().train(), frozen_bias().train(), []
    whole[1].eval()
    wanted = adapt(whole, data(), settings, tmp_path / "whole")
    assert [module.training for module in whole] == [index != 1 for index in range(len(whole))]
    assert {name: flag for name, (flag, _) in state(whole).items()} == {n: f for n, (f, _) in state(model).items()}

    def interrupt(module, args, output):
        steps.extend([1] * module.training)
        if len(steps) > 12:
            raise KeyboardInterrupt

    before = state(model)
    handle = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        adapt(model, data(), settings, tmp_path / "part")
    handle.remove()
    assert same(state(model), before)
    assert all(module.training for module in model.modules())
    again = adapt(model, data(), settings, tmp_path / "part")
    assert again.after == wanted.after
    assert again.history == wanted.history


@pytest.mark.parametrize("method", ["lora", "dora", "deep-lora", "geolora"])
def test_a_training_that_came_to_nothing_leaves_the_model_as_it_was(method, tmp_path):
    model = frozen_bias()
    before = state(model)
    with pytest.raises(ValueError, match=r"the loss is nan|no epoch was better"):  # DoRA divides by what became large
        adapt(model, data(), AdaptSettings(method, params=150, epochs=1, learning_rate=1e30), tmp_path)
    assert same(state(model), before)
    adapt(model, data(), AdaptSettings(method, params=150, epochs=3, learning_rate=1e-2), tmp_path, restart=True)


def test_adapters_of_peft_are_known(tmp_path):
    outer = peft.get_peft_model(network(), peft.LoraConfig(target_modules=["3"], r=2))
    before = state(outer)
    for model in (outer, outer.base_model.model):
        for way in (rf.deep_lora_, rf.geolora_, rf.debora_):
            with pytest.raises(
                ValueError, match=r"already has adapters: .*3 is a layer of PEFT: take merge_and_unload"
            ):
                way(model, rank=1)
        with pytest.raises(ValueError, match="already has adapters"):
            adapt(model, data(), SETTINGS, tmp_path)
    assert same(state(outer), before)
    assert not list(tmp_path.iterdir())


def test_updates_that_are_not_finite_are_not_merged():
    model = rf.deep_lora_(network(), rank=2, epsilon=0.5)
    model[3].factors[1].data[0, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        NonFiniteError,
        match=r"^3: \d+ of \d+ values of a matrix of its update are NaN or infinite: nothing was merged: .*remove_",
    ):
        room.merge_(model)
    assert list(room.updates(model)) == ["0", "3"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if "3.f" not in name)
    assert type(room.remove_(model)[0]) is torch.nn.Linear


@pytest.mark.parametrize("way", [rf.deep_lora_, rf.geolora_, rf.debora_])
def test_adapters_made_in_inference_mode_are_those_made_outside(way):
    x, y = torch.randn(16, 8), torch.arange(16) % 3
    outside, inside = (network() for _ in range(2))
    way(outside, rank=2, data=(x, y))
    with torch.inference_mode():
        way(inside, rank=2, data=(x.clone(), y.clone()))
    assert same(state(inside), state(outside))
    inside(x).square().mean().backward()
    assert any(p.grad is not None for p in inside.parameters())


def test_an_extraction_from_data_in_inference_mode_is_that_of_outside():
    base, tuned = network(), network()
    tuned[0].weight.data += torch.randn(16, 1) @ torch.randn(1, 8)
    x = torch.randn(32, 8)
    wanted = rf.extract(base, tuned, "rank=1", data=x).adapter.pairs["0"]
    with torch.inference_mode():
        found = rf.extract(base, tuned, "rank=1", data=x).adapter.pairs["0"]
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("method", METHODS)
def test_an_adaptation_in_inference_mode_is_that_of_outside(method, tmp_path):
    settings = AdaptSettings(method, params=150, epochs=3, batch_size=8, learning_rate=1e-2)
    wanted = adapt(network(2), data(), settings, tmp_path / "outside")
    model = network(2)
    with torch.inference_mode():
        assert adapt(model, data(), settings, tmp_path / "inside").history == wanted.history
