"""An adapter of a compressed network that merges into its factors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.adapt.restore import Added, restore_
from rankfold.pipeline.restoring import RestoreSettings, restore


def networks() -> tuple[nn.Module, nn.Module, list[torch.Tensor]]:
    """An original, its truncation with two factored layers, a dense one and a norm, and data."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(12, 24), nn.Tanh(), nn.LayerNorm(24), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6)
        ).eval()
        data = list(torch.randn(256, 12).split(32))
    plan = rf.plan(model, rf.Ranks({"0": 6, "3": 8}), "truncate", example=data[0][:1])
    return model, rf.apply_(copy.deepcopy(model), plan), data


@torch.no_grad()
def apart(small: nn.Module, model: nn.Module, data: list[torch.Tensor]) -> float:
    return sum(float((small(x) - model(x)).square().mean()) for x in data)


def test_what_was_lost_is_won_back_at_the_same_ranks():
    model, small, data = networks()
    before, was = apart(small, model, data), copy.deepcopy(small.state_dict())
    found = restore_(small, model, data, params=150, steps=120, batch_size=32, learning_rate=0.02)
    assert found.after < 0.8 * found.before
    assert apart(small, model, data) < 0.8 * before
    assert 0 < found.params <= 150
    assert found.step > 0
    now = small.state_dict()
    assert {key: value.shape for key, value in now.items()} == {key: value.shape for key, value in was.items()}
    assert type(small[0]) is type(networks()[1][0])
    for key, value in now.items():
        name = key.removesuffix(".weight")
        assert torch.equal(value, was[key]) == (name not in found.ranks), key
        if name in found.ranks:  # the update has the rank that was said
            assert int(torch.linalg.matrix_rank((value - was[key]).double(), rtol=1e-4)) == found.ranks[name]
    prices = {name: sum(was[f"{name}.weight"].shape) for name in found.ranks}
    assert found.params == sum(prices[name] * rank for name, rank in found.ranks.items())
    assert all(p.requires_grad and p.grad is None for p in small.parameters())
    assert not any(isinstance(module, Added) for module in small.modules())


def test_where_nothing_is_gained_nothing_changes():
    model, small, data = networks()
    was = copy.deepcopy(small.state_dict())
    found = restore_(small, model, data, params=0.2, steps=6, batch_size=32, learning_rate=1e3)
    assert (found.step, found.after) == (0, found.before)
    assert all(torch.equal(value, was[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize(("params", "said"), [(5, "5 numbers are too few .* takes at least 18"), (0, "share of the")])
def test_an_impossible_size_is_refused_and_nothing_is_left_behind(params, said):
    model, small, data = networks()
    with pytest.raises(ValueError, match=said):
        restore_(small, model, data, params=params, steps=1)
    assert not hasattr(small[0].down, "parametrizations")


def test_a_dense_network_is_refused():
    model, _, data = networks()
    with pytest.raises(ValueError, match="compress it first"):
        restore_(copy.deepcopy(model), model, data)


def test_where_only_whole_numbers_lead_to_the_answers_nothing_can_be_trained():
    model, _, data = networks()
    model = nn.Sequential(model[0], model[3])
    plan = rf.plan(model, "bytes=0.4", data=data, forms="int8")
    small = rf.apply_(copy.deepcopy(model), plan)
    assert {entry.form.value for entry in plan.entries} == {"int8"}
    small.add_module("aside", rf.LowRankLinear(3, 1, 3))  # something factored, which nothing depends on
    small.forward = lambda x: nn.Sequential.forward(small[:2], x)
    was = copy.deepcopy(small.state_dict())
    with pytest.raises(ValueError, match="there is nothing to train"):
        restore_(small, model, data, batch_size=32)
    assert all(torch.equal(value, was[key]) for key, value in small.state_dict().items())


def test_in_inference_mode_it_trains_as_elsewhere():
    model, small, data = networks()
    with torch.inference_mode():
        found = restore_(small, model, data, params=150, steps=20, batch_size=32)
        assert torch.is_inference_mode_enabled()
    other, twin, data = networks()
    assert found.after == restore_(twin, other, data, params=150, steps=20, batch_size=32).after
    small(data[0]).sum().backward()  # what was merged can be trained on


def test_a_batch_of_no_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        restore(None, None, None, RestoreSettings(batch_size=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_whose_layers_have_three_factors_is_restored():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
        data = list(torch.randn(64, 3, 8, 8).split(16))
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"2": 3}), "tucker", data))
    found = restore_(small, model, data, params=80, steps=30, batch_size=16)
    assert found.after < found.before


class Gated(nn.Module):
    """A block whose inner channels may be rescaled: a factor on the way in is made good on the way out."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def test_a_network_that_is_rescaled_exactly_is_restored_exactly_as_before():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(Gated(), Gated(), nn.Linear(12, 6)).eval()
        data = list(torch.randn(256, 12).split(32))
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks({"0.up": 6, "1.down": 6}), "truncate", data))
    other = copy.deepcopy(small)
    with torch.no_grad():
        for layer, scale in ((other[0].up.up, 512.0), (other[1].up, 1 / 64)):
            layer.weight[3] *= scale
            layer.bias[3] *= scale
        other[0].down.weight[:, 3] /= 512.0
        other[1].down.down.weight[:, 3] *= 64.0
        torch.testing.assert_close(other(data[0]), small(data[0]))
    found, again = (restore_(one, model, data, params=200, steps=30, batch_size=32) for one in (small, other))
    assert again.ranks == found.ranks
    assert found.step > 0
    assert (again.before, again.after) == pytest.approx((found.before, found.after), rel=1e-5)
    torch.testing.assert_close(other(data[0]), small(data[0]))


def test_parameters_keep_their_order_and_an_optimizer_its_state():
    model, small, data = networks()
    names, parameters = list(small.state_dict()), list(small.parameters())
    restore_(small, model, data, params=0.2, steps=2, batch_size=32)
    assert list(small.state_dict()) == names
    assert all(now is was for now, was in zip(small.parameters(), parameters, strict=True))


def test_what_is_frozen_stays_unless_all_of_it_is():
    model, small, data = networks()
    small[0].requires_grad_(False)
    was = copy.deepcopy(small[0].state_dict())
    found = restore_(small, model, data, params=0.2, steps=20, batch_size=32)
    assert found.step > 0
    assert not {name for name in found.ranks if name.startswith("0.")}
    assert all(torch.equal(value, was[key]) for key, value in small[0].state_dict().items())
    small.requires_grad_(False)
    assert {name for name in restore_(small, model, data, params=0.4, steps=2, batch_size=32).ranks if name[0] == "0"}


def test_interrupted_it_leaves_the_model_as_it_was():
    model, small, data = networks()
    was = copy.deepcopy(small.state_dict())

    def stop(what: str, done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_(small, model, data, params=150, steps=20, batch_size=32, learning_rate=0.5, progress=stop)
    assert list(small.state_dict()) == list(was)
    assert all(torch.equal(value, was[key]) for key, value in small.state_dict().items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": -1}, "steps must be a whole number of at least 1, got -1: .* leave restore_ out"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite"),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(given, said):
    model, small, data = networks()
    with pytest.raises(ValueError, match=said):
        restore_(small, model, data, **given)


def test_a_batch_that_is_not_finite_is_named():
    model, small, data = networks()
    data[3][7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"^batch 4 of the data: .* are nan away"):
        restore_(small, model, data, batch_size=32)
