"""Training of an adapter that comes to nothing says why; settings that cannot be are refused where they are given."""

from __future__ import annotations

import pytest
import torch
from commands import rankfold
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf
from rankfold import zoo
from rankfold.pipeline.adaptation import AdaptSettings, NothingLearntError, adapt

METHODS = ("lora", "dora", "adalora", "deep-lora", "geolora", "debora")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def misled() -> tuple[TensorDataset, ...]:
    """What the network answers itself; but for training the answers are others, so that every step makes it worse."""
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
    y = network()(x).argmax(1)
    wrong = (y + 1) % 3
    return TensorDataset(x[:64], wrong[:64]), TensorDataset(x[64:80], y[64:80]), TensorDataset(x[80:], y[80:])


@pytest.mark.parametrize("method", METHODS)
def test_where_the_base_stays_the_best_no_higher_rate_is_advised(method, tmp_path):
    pytest.importorskip("peft")
    settings = AdaptSettings(method, params=150, epochs=3, batch_size=8, learning_rate=2e-2)
    said = r"no epoch was better on validation than the base \(accuracy 100.*\), .* learning rate below 0.02 \(--lear"
    with pytest.raises(NothingLearntError, match=said) as told:
        adapt(network(), misled(), settings, tmp_path)
    assert "higher" not in str(told.value)
    assert not (tmp_path / "adapter_config.json").exists()


@pytest.mark.parametrize("method", ["lora", "dora", "deep-lora"])
def test_where_nothing_moved_a_higher_rate_is_advised(method, tmp_path):
    pytest.importorskip("peft")
    settings = AdaptSettings(method, params=150, epochs=1, batch_size=64, learning_rate=1e-12)
    with pytest.raises(NothingLearntError, match="training changed no layer: give a higher learning rate"):
        adapt(network(), misled(), settings, tmp_path)


def test_norms_alone_without_a_direction_are_no_adapter():
    from rankfold.adapt.peft_format import Adapter
    from rankfold.pipeline.adaptation import _cut

    zero = Adapter({"0": (torch.randn(2, 8), torch.zeros(16, 2))}, magnitudes={"0": torch.ones(16)})
    with pytest.raises(NothingLearntError, match="training changed no layer"):
        _cut(zero, 64, 1000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, got True"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": None}, "batch_size must be a whole number of at least 1, got None"),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"radius": 0.0}, "radius must be positive and finite, got 0.0"),
        ({"radius": float("inf")}, "radius must be positive and finite, got inf"),
    ],
)
def test_settings_that_cannot_be(given, says):
    with pytest.raises(ValueError, match=says):
        AdaptSettings(**given)


@pytest.mark.parametrize("option", ["--learning-rate", "--radius", "--epochs", "--batch-size"])
def test_zero_is_not_taken_for_not_given_by_the_command(option, tmp_path):
    more = ("--method", "debora") if option == "--radius" else ()
    result = rankfold("adapt", "digits-cnn", "--data", "digits", "-o", tmp_path / "out", option, 0, *more)
    assert result.exit_code == 2
    assert option in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--learning-rate", "--batch-size"])
def test_nor_with_an_original(option, tmp_path):
    model = zoo.model("digits-cnn")
    plan = rf.plan(model, "params=0.8", "truncate", example=torch.rand(1, 1, 8, 8))
    rf.save(rf.apply_(model, plan), plan, tmp_path / "small")
    asked = ("adapt", tmp_path / "small", "--data", "digits", "-o", tmp_path / "out", "--original", tmp_path / "small")
    result = rankfold(*asked, option, 0)
    assert result.exit_code == 2
    assert option in result.stderr
    assert not (tmp_path / "out").exists()
