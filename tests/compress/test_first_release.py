"""Plans, saved networks, trainings and recoveries that the first release wrote are read as they were meant.

The files were written by ``fixtures/first_release/make.py`` with commit 0fbd5c7, and are not written again.
"""

import csv
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rankfold as rf
from rankfold.pipeline.trainings.config import parse, read
from rankfold.pipeline.trainings.training import train
from rankfold.recover import FactorModel

FIRST = Path(__file__).parents[1] / "fixtures" / "first_release"


def network() -> nn.Module:
    """As ``make.py`` has it."""
    spec = importlib.util.spec_from_file_location("first_release_make", FIRST / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.network().eval()


def original() -> nn.Module:
    found = network()
    found.load_state_dict(load_file(FIRST / "trained" / "model.safetensors"))
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FIRST / "expected.safetensors")


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-5)


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Spatial pairs are solved anew, by alternations that end elsewhere within a thousandth of the least error."""
    assert (found.detach() - wanted).norm() < 1e-2 * wanted.norm()


def test_the_original_answers_as_it_did(expected):
    same(original()(expected["input"]), expected["original"])


@pytest.mark.parametrize("name", ["project", "sequential", "truncate"])
def test_its_plans_are_carried_out_as_they_were(name, expected):
    """With moments beside the plan, with fitted factors, and with nothing."""
    plan = rf.Plan.load(FIRST / f"{name}.json")
    assert (plan.statistics is not None, plan.factors is not None) == (name == "project", name == "sequential")
    assert not plan.edited
    small = rf.apply_(original(), plan)
    assert len(plan.changed) >= 2
    (near if name == "project" else same)(small(expected["input"]), expected[name])
    assert rf.model_cost(small, expected["input"]).params == plan.after.params


@pytest.mark.parametrize("name", ["project", "sequential", "truncate"])
def test_its_plans_are_written_again_without_loss(name, tmp_path, expected):
    plan = rf.Plan.load(FIRST / f"{name}.json")
    plan.save(tmp_path / "again.json")
    again = rf.Plan.load(tmp_path / "again.json")
    assert again == plan
    same(rf.apply_(original(), again)(expected["input"]), rf.apply_(original(), plan)(expected["input"]).detach())


def test_its_saved_network_is_loaded_and_sliced(expected, tmp_path):
    stored = rf.load(FIRST / "saved", network())
    assert stored.notes == {"why": "a fixture"}
    same(stored.model.eval()(expected["input"]), expected["saved"])
    sliced = rf.slice_(stored, ["params=0.5", "flops=0.5"], example=expected["input"][:1])
    near(sliced.model(expected["input"]), expected["sliced"])
    rf.save(sliced.model, sliced.plan, tmp_path / "again", bottlenecks=sliced.bottlenecks)
    again = rf.load(tmp_path / "again", network()).model.eval()
    same(again(expected["input"]), sliced.model(expected["input"]).detach())


def test_a_changed_weight_is_noticed(expected):
    """What the comparison above is worth."""
    stored = rf.load(FIRST / "saved", network())
    with torch.no_grad():
        next(stored.model.parameters())[0].add_(0.02)
    with pytest.raises(AssertionError):
        same(stored.model.eval()(expected["input"]), expected["saved"])


def test_its_training_is_finished_and_its_checkpoint_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FIRST))
    shutil.copytree(FIRST / "trained", tmp_path / "trained")
    config = parse(read(tmp_path / "trained" / "config.yaml") | {"out": str(tmp_path / "trained")})
    before = load_file(tmp_path / "trained" / "model.safetensors")
    found = train(config)
    assert (found.test_accuracy, found.best_epoch) == (pytest.approx(0.3028953229), 1)
    (tmp_path / "trained" / "result.json").unlink()
    (tmp_path / "trained" / "model.safetensors").unlink()
    again = train(config)  # of the one epoch nothing is left to train
    assert again.test_accuracy == found.test_accuracy
    after = load_file(tmp_path / "trained" / "model.safetensors")
    for name, value in before.items():
        same(after[name].double(), value.double())


def test_its_recovery_predicts_as_it_did():
    model = FactorModel.from_bytes((FIRST / "recovered" / "factors.safetensors").read_bytes())
    with (FIRST / "ratings.csv").open() as file:
        rows, columns, values = zip(*csv.reader(file))
    np.testing.assert_allclose(model.predict(rows, columns), np.array(values, float), atol=1e-6)
    whole = np.outer(np.arange(1, 9), np.arange(1, 7)) / 8  # what was kept back is found too
    told = model.predict([f"r{i}" for i in range(8) for _ in range(6)], [f"c{j}" for _ in range(8) for j in range(6)])
    np.testing.assert_allclose(told.reshape(8, 6)[:5], whole[:5], atol=1e-6)


def test_a_plan_of_other_weights_is_refused(tmp_path):
    other = original()
    with torch.no_grad():
        other[3].weight.mul_(2)
    with pytest.raises(ValueError, match="other weights of the same architecture"):
        rf.apply_(other, rf.Plan.load(FIRST / "project.json"))
    state = load_file(FIRST / "saved" / "model.safetensors")
    shutil.copytree(FIRST / "saved", tmp_path / "saved")
    save_file({name: value + 1 for name, value in state.items()}, tmp_path / "saved" / "model.safetensors")
    with pytest.raises(rf.StoreError, match="sha256"):
        rf.load(tmp_path / "saved", network())
