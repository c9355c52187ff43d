"""Data-agnostic against data-driven truncation, in its quick form."""

from __future__ import annotations

import pandas as pd
import pytest

from rankfold.compress.methods.relu import _told, gain_told
from rankfold.papers import reproduce
from rankfold.papers.recovery.layers import sentences
from rankfold.papers.request import Request


def test_seeing_data_pays_in_every_layer(tmp_path):
    outcome = reproduce("recovery-layers", tmp_path, Request(quick=True, finetune_epochs=0))
    layers = outcome.tables["layers"].set_index(["method", "site"])["held-out"]
    blind, projected, sequential = (
        layers.loc[name] for name in ("truncation, without data", "projection", "sequential")
    )
    shared = blind.index.intersection(projected.index)
    assert len(shared) >= 2
    assert (projected[shared] < blind[shared]).mean() > 0.6
    assert sequential.median() < blind.median()
    assert (tmp_path / "layers.svg").exists()
    assert any("behind the activation" in remark for remark in outcome.remarks)
    again = reproduce("recovery-layers", tmp_path, Request(quick=True, finetune_epochs=0))
    assert again.tables["points"].equals(outcome.tables["points"])


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
