"""Data-agnostic against data-driven truncation, in its quick form."""

from __future__ import annotations

import pytest

from rankfold.papers import reproduce
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


def test_options_it_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one model"):
        reproduce("recovery-layers", tmp_path, Request(quick=True, models=("fcn-6", "fcn-8")))
