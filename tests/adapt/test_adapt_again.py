"""A directory of an adaptation that is used again: the same request goes on, and nothing else passes for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rankfold.pipeline.adaptation import AdaptSettings, adapt

SETTINGS = AdaptSettings("deep-lora", params=150, epochs=3, batch_size=8, learning_rate=1e-2)
WRITTEN = ("adapter_config.json", "adapter_model.safetensors", "extraction.json", "merged", "report.json", "training")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()


def data(seed: int = 1) -> tuple[TensorDataset, ...]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 8, generator=draw)
    y = x[:, :3].argmax(1)
    return tuple(TensorDataset(x[s], y[s]) for s in (slice(64), slice(64, 80), slice(80, 96)))


def test_a_base_with_other_weights_is_refused_as_it_is(tmp_path):
    first = adapt(network(), data(), SETTINGS, tmp_path)
    other, before = network(5), network(5).state_dict()
    with pytest.raises(ValueError, match=r"asked for otherwise \(the model had other weights there\): give another"):
        adapt(other, data(), SETTINGS, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    moved = network()
    moved[1].running_mean.add_(0.5)  # a buffer is a part of the base too
    with pytest.raises(ValueError, match="the model had other weights there"):
        adapt(moved, data(), SETTINGS, tmp_path)
    with pytest.raises(ValueError, match="it was another model there"):
        adapt(nn.Sequential(*network(), nn.Linear(3, 3)), data(), SETTINGS, tmp_path)
    again = adapt(network(), data(), SETTINGS, tmp_path)
    assert again.after == first.after


@pytest.mark.parametrize(("part", "name"), [(0, "train"), (1, "validation"), (2, "test")])
def test_other_data_are_refused_by_their_part(part, name, tmp_path):
    adapt(network(), data(), SETTINGS, tmp_path)
    parts = list(data())
    parts[part] = data(2)[part]
    with pytest.raises(ValueError, match=rf"\(the {name} data were other ones there\)"):
        adapt(network(), tuple(parts), SETTINGS, tmp_path)


def test_what_did_not_note_its_base_is_not_taken_for_the_same(tmp_path):
    adapt(network(), data(), SETTINGS, tmp_path)
    known = json.loads((tmp_path / "request.json").read_text())
    earlier = {key: value for key, value in known.items() if key != "base"} | {"shapes": ["0.weight (16, 8)"]}
    (tmp_path / "request.json").write_text(json.dumps(earlier))
    with pytest.raises(
        ValueError, match=r"of an earlier version, which did not note the weights of its base, so.*rest"
    ):
        adapt(network(), data(), SETTINGS, tmp_path)
    assert adapt(network(), data(), SETTINGS, tmp_path, restart=True).extraction.params <= 150


def test_restart_leaves_nothing_of_what_was_there(tmp_path, monkeypatch):
    from rankfold.pipeline import adaptation

    adapt(network(), data(), SETTINGS, tmp_path, merge=True)
    (tmp_path / "notes.txt").write_text("mine")
    there = sorted(path.name for path in tmp_path.iterdir())
    assert set(WRITTEN) < set(there)
    few = AdaptSettings("deep-lora", params=3, epochs=3)
    with pytest.raises(ValueError, match="params=3 is too few"):
        adapt(network(), data(), few, tmp_path, restart=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == there  # what is refused removes nothing
    seen = []

    def fit(*args, **how):
        seen.extend(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        adapt(network(), data(), AdaptSettings("deep-lora", params=150, seed=1), tmp_path, restart=True)
    assert {"notes.txt", "request.json"} <= set(seen)
    assert not set(WRITTEN) & set(seen)
    monkeypatch.undo()
    adapt(network(), data(), SETTINGS, tmp_path, restart=True)
    assert not (tmp_path / "merged").exists()  # it was not asked for


def test_a_merged_folder_of_somebody_else_stays(tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="merged is there already, and rankfold did not write it"):
        adapt(network(), data(), SETTINGS, tmp_path, merge=True)
    adapt(network(), data(), SETTINGS, tmp_path)
    adapt(network(), data(), SETTINGS, tmp_path, restart=True)
    assert (tmp_path / "merged" / "mine.txt").read_text() == "mine"


def test_merging_later_and_again(tmp_path):
    adapt(network(), data(), SETTINGS, tmp_path)
    for merge in (True, False, True):
        adapt(network(), data(), SETTINGS, tmp_path, merge=merge)
        assert (tmp_path / "merged" / "model.safetensors").exists()


def test_a_function_that_chooses_layers_is_known_by_what_it_chooses(tmp_path):
    def asked(name: str) -> AdaptSettings:
        return replace(SETTINGS, params=60, where=lambda path, _: path == name)

    first = adapt(network(), data(), asked("0"), tmp_path)
    again = adapt(network(), data(), asked("0"), tmp_path)  # another function object, the same layers
    assert again.after == first.after
    with pytest.raises(ValueError, match="where"):
        adapt(network(), data(), asked("3"), tmp_path)
