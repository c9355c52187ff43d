"""Planted recovery: the numbers behind the table, and the sentences that follow from them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import rankfold

from rankfold.papers import reproduce
from rankfold.papers.recovery.planted import GRIDS, planned, remarks, slopes
from rankfold.papers.recovery.trials import THEOREMS, Planted
from rankfold.papers.request import Request
from rankfold.pipeline import Tell


def made_up(exponent: float, factor: float = 0.1) -> pd.DataFrame:
    """Points of a power law in everything that is varied; bounds of the exponent −0.5."""
    rows = [
        {
            "theorem": theorem.name,
            "varied": varied,
            "value": value,
            "MSE": factor * value**exponent,
            "ours": value**-0.5,
            "paper": 2 * value**-0.5,
            "violations": 0,
        }
        for theorem in THEOREMS
        for varied in GRIDS
        for value in (1.0, 2.0, 4.0)
    ]
    return pd.DataFrame(rows)


def test_slopes_are_the_exponents_of_power_laws():
    found = slopes(made_up(-1.25))
    assert found["slope measured"].tolist() == pytest.approx([-1.25] * 15)
    assert found["slope of ours"].tolist() == pytest.approx([-0.5] * 15)
    assert len(found) == len(THEOREMS) * len(GRIDS)


def test_sentences_say_when_a_bound_is_violated():
    points = made_up(-1.25)
    assert sum("held in every trial" in said for said in remarks(points, slopes(points))) == 2
    points.loc[points["theorem"] == "4.4", "violations"] = 1
    said = remarks(points, slopes(points))
    assert sum("held in every trial" in sentence for sentence in said) == 1
    assert any("violated in 15 trials" in sentence for sentence in said)


def test_a_planted_layer_has_what_it_says():
    planted = Planted(rows=50, inputs=7, outputs=9, rank=2, largest=1.5)
    x, truth, noise = planted.draw(3)
    assert (x.shape, truth.shape, noise.shape) == ((50, 7), (50, 9), (50, 9))
    assert int(torch.linalg.matrix_rank(truth)) == 2
    assert float(truth.abs().max()) == pytest.approx(1.5)
    assert torch.equal(planted.draw(3)[1], truth)
    assert not torch.equal(planted.draw(4)[1], truth)


def test_every_problem_can_be_drawn():
    """No rank above the widths, no empty size, in either form."""
    for quick in (True, False):
        for problem in planned(quick):
            p = problem.planted
            assert 1 <= p.rank <= min(p.inputs, p.outputs) < p.rows, problem
            assert p.sigma > 0


@pytest.mark.parametrize("theorem", THEOREMS, ids=lambda theorem: theorem.name)
def test_errors_are_below_what_bounds_them(theorem):
    planted = Planted(rows=80, inputs=6, outputs=8, rank=2, sigma=0.4, largest=theorem.base.largest)
    trial = theorem.trial(planted, 0)
    assert 0 < trial.measured < trial.paper
    assert not trial.sentence
    if theorem.name == "3.1":
        assert trial.measured == pytest.approx(trial.ours, rel=0.15)
    else:
        assert trial.measured < trial.ours < trial.paper


def test_the_quick_form_is_written_and_told(tmp_path: Path):
    told: list[tuple[int, int]] = []
    tell = Tell(progress=lambda what, done, total: told.append((done, total)))
    outcome = reproduce("recovery-planted", tmp_path, Request(quick=True, seeds=(5,)), tell)
    assert told[-1] == (18, 18)  # 30 points; the base, which stands in all five panels of a theorem, is solved once
    assert list(outcome.tables) == ["slopes", "points"]
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["about"]["seeds"] == [5]
    assert all(math.isfinite(row["slope measured"]) for row in result["tables"]["slopes"])
    strong = [row for row in result["tables"]["points"] if row["theorem"] == "3.1"]
    assert all(row["MSE"] == pytest.approx(row["ours"], rel=0.15) for row in strong)
    assert (tmp_path / "errors.svg").exists()


def test_options_of_training_are_refused(tmp_path: Path):
    failed = rankfold("reproduce", "recovery-planted", "--quick", "--epochs", 3, "-o", tmp_path)
    assert failed.exit_code == 2
    assert "no option epochs" in failed.stderr


def test_the_phase_diagram_tells_ways_apart(tmp_path):
    outcome = reproduce("recovery-phase", tmp_path, Request(quick=True))
    rates = outcome.tables["rates"].set_index(["way", "entries / freedom"])["found"]
    assert rates["default, rank at most 2r", 4.0] == 1
    assert rates["default, rank at most 2r", 2.0] >= rates["nuclear norm", 2.0]
    assert any(remark.startswith("nuclear norm: ") for remark in outcome.remarks)
    assert (tmp_path / "phase.svg").exists()
