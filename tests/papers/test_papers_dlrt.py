"""Experiments of training at low rank: what is chosen, what is said, and each in small."""

from __future__ import annotations

import pandas as pd
import pytest

from rankfold.papers import reproduce
from rankfold.papers.dlrt import condlr
from rankfold.papers.request import Request


def cell(variant: str, strength: float, clean: float, under: float) -> dict:
    validation = {"clean": clean, "linf 0.06": under}
    return {"case": {"variant": variant, "strength": strength}, "validation": validation}


def test_a_strength_that_costs_accuracy_is_not_chosen_for_what_it_stands():
    plain = cell("low rank", 0.0, 0.970, 0.40)
    grid = [
        cell("condition", 1.5, 0.950, 0.70),
        cell("condition", 2.0, 0.966, 0.50),
        cell("condition", 4.0, 0.969, 0.45),
    ]
    assert condlr._chosen("condition", [plain, *grid]) == 2.0
    assert condlr._chosen("condition", [plain, grid[0]]) == 1.5  # none is fair: the nearest


def test_what_came_back_is_a_share_of_what_low_rank_costs():
    def row(name: str, under: float) -> dict:
        rest = dict.fromkeys((f"{key} %" for key in condlr.ATTACKS), 50.0)
        return rest | {
            "network": name,
            "strength": 1.0,
            "params": 9,
            "clean %": 97.0,
            "linf 0.06 %": under,
            "∏σ₁": 1,
            "∏κ": 2,
        }

    runs = pd.DataFrame([row("dense", 60), row("low rank", 40), row("condition", 50), row("spread", 62)])
    table = condlr.summary(runs)
    assert table["came back %"].tolist() == [100, 0, 50, pytest.approx(110)]
    said = " ".join(condlr.remarks(table))
    assert "costs 20.0 points" in said
    assert "does not reach the dense" in said
    assert "it reaches the dense" in said


def test_condlr_in_small_is_trained_attacked_and_read_back(tmp_path):
    asked = Request(quick=True, seeds=(0,), epochs=2)
    outcome = reproduce("condlr-mnist", tmp_path, asked)
    assert list(outcome.table.network) == ["dense", "low rank", "condition", "spread"]
    assert outcome.table.params.nunique() == 2  # of one size, but for the dense one
    assert len(outcome.tables["runs"]) == 8
    assert outcome.tables["runs"].chosen.sum() == 4
    again = reproduce("condlr-mnist", tmp_path, asked)
    pd.testing.assert_frame_equal(again.table, outcome.table)
    assert (tmp_path / "robustness.svg").exists()


def test_the_partial_derivative_is_the_hypergradient_and_the_printed_formula_its_opposite(tmp_path):
    outcome = reproduce("debora-bilevel", tmp_path, Request(quick=True))
    table = outcome.table.set_index(["lower level", "data"])
    for level in ("penalty", "oblique", "stiefel"):
        assert table.loc[(level, "same"), "cosine ∂f₁"] > 0.999
        assert table.loc[(level, "same"), "cosine printed"] < -0.999
    assert table.loc[("none", "same"), "size"] < 1e-2
    oracle = outcome.tables["oracle"]
    assert (oracle.gap < 1e-6).all()
    assert oracle.exact.all()
    assert (oracle["largest Σs / τ"] <= 1 + 1e-12).all()
    assert "minus the partial derivative" in " ".join(outcome.remarks)
