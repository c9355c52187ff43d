"""The experiments on rank collapse, each in small: they run, are read back, and say what the theory promises."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import failed, rankfold

from rankfold.papers import EXPERIMENTS
from rankfold.papers.collapse.bounds import chain_remark, tightness
from rankfold.papers.collapse.descent import chain_network, minimise
from rankfold.papers.collapse.figure_1 import apart
from rankfold.papers.collapse.figure_3 import Falls, falls, in_words
from rankfold.papers.collapse.figure_4 import spread
from rankfold.papers.collapse.mnist import shape_of
from rankfold.papers.recorded import fit_recorded
from rankfold.papers.request import Request
from rankfold.papers.writing import panels, svg
from rankfold.record import SpectrumRecorder
from rankfold.run.cells import Kept
from rankfold.train import Recipe
from rankfold.zoo import load_data
from rankfold.zoo.networks.fcn import FCN

NAMES = [name for name in EXPERIMENTS if name.startswith(("nrc-", "collapse-")) and not name.endswith("-full")]


def test_one_side_of_the_transition_alone_is_not_told_from_the_other() -> None:
    cells = pd.DataFrame({"decay_over_predicted": [0.1, 10], "distance_most": [0.5, 0.001], "distance_least": 0.001})
    assert apart(cells).endswith(
        "at most 0.001 beyond the predicted transition, at least 0.001 before it: no bound tells them apart."
    )
    assert "any bound between the two" in apart(cells.assign(distance_least=[0.4, 0.001]))
    assert "None of these cells lies beyond the predicted transition" in apart(cells[:1])
    assert "None of these cells lies before the predicted transition" in apart(cells[1:])
    assert "lies beyond or before the predicted" in apart(cells[:0])


def test_series_of_one_value_or_of_constants_have_no_correlation() -> None:
    one, constant, falling = ([Falls(0, 0, math.nan)] * 3, [Falls(0, 2, math.nan)], [Falls(2, 2, -1.0)])
    assert (
        in_words(one, "steps of the grid")
        == "has a single value in each of 3 series, and no steps of the grid to fall in"
    )
    assert in_words(constant, "steps") == "falls in 0 of 2 steps, and is constant in each of 1 series"
    assert (
        in_words(falling + constant, "steps")
        == "falls in 2 of 4 steps, rank correlation -1.000 in the mean of 1 series"
    )


def test_the_spread_over_a_zero_matrix_is_not_defined() -> None:
    table = pd.DataFrame({"decay": 1e-3, "width": [16, 32], "stable_rank": [0.0, 2.0], "effective_rank": [2.0, 3.0]})
    assert math.isnan(spread(table, "width", 1e-3, "stable_rank"))
    assert spread(table, "width", 1e-3, "effective_rank") == pytest.approx(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_in_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = rankfold("reproduce", name, "--quick", "-o", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == (tmp_path / "result.md").read_text(encoding="utf-8")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert all(result["tables"].values())
    for key, rows in result["tables"].items():
        assert len(pd.read_csv(tmp_path / f"{key}.csv")) == len(rows)
    drawings = list(tmp_path.glob("*.svg"))
    assert drawings
    assert all(ET.parse(file).getroot().tag.endswith("svg") for file in drawings)
    if name.startswith("nrc-"):
        assert any(": 0 violations" in remark for remark in result["remarks"])
    # everything is read back: no cell is computed again
    monkeypatch.setattr(Kept, "do", None)
    again = rankfold("reproduce", name, "--quick", "-o", tmp_path, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["tables"] == result["tables"]


def test_bounds_are_counted_and_a_violation_is_told() -> None:
    sound = {"distance": 1.0, "joint": 2.0, "bound": 4.0, "holds": True, "vacuous": False, "tightness": 4.0}
    rows = [sound, sound | {"bound": 8.0, "tightness": 8.0, "vacuous": True}, sound | {"holds": False}]
    assert tightness(rows)["violations"] == 1
    assert "1 violations" in chain_remark(rows)
    assert "1 are vacuous" in chain_remark(rows)
    assert "C·TCV/κ" not in chain_remark(rows)
    measured = [sound | {"theorem_value": value} for value in (6.0, 30.0, 12.0)]
    assert "3 of them: 6 times the distance at best, 12 in the median" in chain_remark([*rows, *measured])
    empty = chain_remark([sound | {"distance": 0.0, "tightness": None}])
    assert "no distance" in empty


def test_a_damaged_cell_is_named(tmp_path: Path) -> None:
    assert rankfold("reproduce", "nrc-figure-2", "--quick", "--decays", "0.1", "-o", tmp_path).exit_code == 0
    # named as by the first release, whose cells are found: what is asked of a cell, and of whom, decides the digest
    file = tmp_path / "runs" / "autoencoder-decay0.1-sigma0.1-seed0-11fafaaf" / "result.json"
    assert "iterations" in json.loads(file.read_text(encoding="utf-8"))["case"]
    file.write_text("{", encoding="utf-8")
    assert str(file) in failed("reproduce", "nrc-figure-2", "--quick", "--decays", "0.1", "-o", tmp_path)
    wrong = rankfold("reproduce", "nrc-figure-1", "--models", "fcn-6", "-o", tmp_path)
    assert (wrong.exit_code, "no option models" in wrong.stderr) == (2, True)


def test_logarithmic_axes_have_plain_numbers() -> None:
    with panels(1, 2) as (figure, axes):
        for panel, top in zip(axes[0], (3.0, 1e4), strict=True):
            panel.plot([1, 2, 3], [1, 2, top])
            panel.set_yscale("log")
        svg(figure)
        told = [[tick.get_text() for tick in panel.get_yticklabels()] for panel in axes[0]]
    assert {"1", "2", "3"} <= set(told[0])
    assert {"10", "10000"} <= set(told[1])
    assert not any("$" in text for texts in told for text in texts)


def test_no_more_iterations_are_made_than_asked() -> None:
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = inputs[:, :2].sin()
    for iterations, every, told in ((7, 500, [0, 7]), (12, 5, [0, 5, 10, 12]), (1, 5, [0, 1])):
        model, seen = chain_network((6, 5, 5, 2), "tanh", bias=True, seed=0), []
        norm, done = minimise(
            model, inputs, targets, 1e-3, iterations=iterations, every=every, gradient=1e-9,
            record=lambda at, _, seen=seen: seen.append(at),
        )  # fmt: skip
        assert (done, seen) == (iterations, told)
        assert norm > 1e-9


def test_sizes_are_those_of_the_data_and_not_of_the_wish() -> None:
    asked = Request(quick=True, train_samples=5000)
    small = {"data": "digits", "epochs": 1, "images": 2000}
    there = len(load_data("digits").train)
    assert shape_of(asked, small, {})["images"] == shape_of(Request(quick=True), small, {})["images"] == there < 2000
    assert shape_of(Request(quick=True, train_samples=300), small, {})["images"] == 300


def test_steps_that_fall_are_counted_in_order() -> None:
    epochs = pd.Series([0, 20, 10, 30])
    found = falls(epochs, pd.Series([4.0, 2.0, 3.0, 1.0]))
    assert (found.down, found.steps, round(found.correlation, 6)) == (3, 3, -1.0)
    assert falls(epochs, pd.Series([4.0, 3.0, 2.0, 1.0])).down == 2  # 4, 2, 3, 1 in the order of epochs


def test_an_interruption_between_checkpoint_and_record_loses_no_record(tmp_path: Path, monkeypatch) -> None:
    data = load_data("digits")
    part = data.train.take(200, torch.Generator().manual_seed(0))
    recipe = Recipe(epochs=4, batch_size=50, learning_rate=0.05)

    def frame(place: Path) -> pd.DataFrame:
        return fit_recorded(FCN(64, 10, 3, 16), part, None, recipe, place)[1].frame()

    torch.manual_seed(0)
    expected = frame(tmp_path / "whole")
    save, calls = SpectrumRecorder.save, []

    def interrupted(self: SpectrumRecorder, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(SpectrumRecorder, "save", interrupted)
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        frame(tmp_path / "broken")
    torch.manual_seed(0)
    pd.testing.assert_frame_equal(frame(tmp_path / "broken"), expected)


def test_experiments_that_share_a_kind_of_case_do_not_read_each_others_cells(tmp_path: Path) -> None:
    for name in ("nrc-figure-1", "nrc-figure-2"):
        shown = rankfold("reproduce", name, "--quick", "--decays", "1e-3", "-o", tmp_path)
        assert shown.exit_code == 0, shown.output
