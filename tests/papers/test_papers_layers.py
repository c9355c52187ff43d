"""Data-agnostic against data-driven truncation, in its quick form."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch

from rankfold import apply_, evaluate, plan, zoo
from rankfold.compress.methods.relu import _told, gain_told
from rankfold.compress.planning.plan import Plan
from rankfold.compress.ranks.budget import Flops, Params
from rankfold.papers import reproduce
from rankfold.papers.lorita import squeezing
from rankfold.papers.lorita.squeezing import Budget
from rankfold.papers.recovery import layers
from rankfold.papers.recovery.layers import sentences
from rankfold.papers.request import Request
from rankfold.pipeline import Tell, first_example


def test_seeing_data_pays_in_every_layer(tmp_path):
    outcome = reproduce("recovery-layers", tmp_path, Request(quick=True, finetune_epochs=0))
    errors = outcome.tables["layers"].set_index(["method", "site"])["held-out"]
    blind, projected, sequential = (
        errors.loc[name] for name in ("truncation, without data", "projection", "sequential")
    )
    shared = blind.index.intersection(projected.index)
    assert len(shared) >= 2
    assert (projected[shared] < blind[shared]).mean() > 0.6
    assert sequential.median() < blind.median()
    assert (tmp_path / "layers.svg").exists()
    assert any("behind the activation" in remark for remark in outcome.remarks)
    again = reproduce("recovery-layers", tmp_path, Request(quick=True, finetune_epochs=0))
    assert again.tables["points"].equals(outcome.tables["points"])


def test_truncation_without_data_is_the_same_whatever_the_data_are(tmp_path, monkeypatch):
    """Plan and network; corrected BatchNorm is another matter."""
    data, network = zoo.load_data("digits"), zoo.model("resnet20", in_channels=1).eval()
    budget, noise = Budget(0.5, 1.0), torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 9
    found = {}
    for kind, part in (("images", data.train), ("noise", [(noise, None)])):
        monkeypatch.setattr(squeezing, "calibration_part", lambda *_args, part=part: part)
        for way in layers.WAYS[:2]:
            place = tmp_path / kind
            point = squeezing.squeeze(network, data, way, budget, 0, place, Tell())
            file = squeezing.place_of(network, data, way, budget, 0, place) / "plan.json"
            found[way.name, kind] = point, [(e.site, e.form, e.rank) for e in Plan.load(file).changed]
    without, corrected = (way.name for way in layers.WAYS[:2])
    assert (without, corrected) == ("truncation, without data", "truncation, BatchNorm corrected")
    assert found[without, "images"] == found[without, "noise"]
    bare = plan(network, (Flops(0.5), Params(1.0)), "truncate", example=first_example(network, data.train))
    assert found[without, "noise"][1] == [(e.site, e.form, e.rank) for e in bare.changed]
    small = apply_(copy.deepcopy(network), bare)
    assert found[without, "images"][0].compressed == evaluate(small, data.test).accuracy
    assert found[corrected, "images"][1] == found[without, "images"][1]
    assert found[corrected, "images"][0].compressed != found[corrected, "noise"][0].compressed


def test_what_no_step_gained_is_none_of_the_loss():
    told = [_told("relu", 0.123, 4), _told("relu", -0.02, 1), _told("relu", 0.0, 0), "a gap of 3 % in all"]
    assert [gain_told(each) for each in told] == [pytest.approx(0.123), pytest.approx(-0.02), 0.0, None]
    points = pd.DataFrame({"seed": [0], "kept FLOPs": 0.5, "method": "ReLU-aware", "compressed": 90.0, "fine-tuned": 1})
    row = {"method": "ReLU-aware", "held-out": 0.1, "predicted": 0.1}
    said = sentences(points, pd.DataFrame([row | {"certificate": each} for each in told]))
    assert any("falls by 3.4 % on average (-2.0 to 12.3 %, 3 layers)" in each for each in said)


def test_images_are_counted_where_they_are_used(tmp_path):
    asked = Request(quick=True, train_samples=200, epochs=1, seeds=(0, 1))
    about = reproduce("recovery-layers", tmp_path, asked).about
    assert about["train_images"] == about["calibration_images"] == 200


def test_options_it_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one model"):
        reproduce("recovery-layers", tmp_path, Request(quick=True, models=("fcn-6", "fcn-8")))
