"""What experiments report is of what they used: test splits seen once, samples that were there, threads given back."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from rankfold.papers import quick, reproduce, runs
from rankfold.papers.dlrt import adaptation, condlr, lenet5, trial
from rankfold.papers.lorita import isvt, squeezing
from rankfold.papers.lorita.retention import Measured, retention_figure
from rankfold.papers.request import Request
from rankfold.papers.selection import tuned
from rankfold.papers.writing import COLOURS, colour, look, records
from rankfold.pipeline import Tell
from rankfold.train import Recipe
from rankfold.zoo import load_data

TINY = Recipe(epochs=1, batch_size=64, optimizer="adam", learning_rate=3e-3)
ASKED = Request(
    quick=True, models=(quick.FULLY_CONNECTED,), depths=(1,), decays=(1e-5, 1e-4, 1e-3), seeds=(0, 1), train_samples=64
)


def roles(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What is evaluated from here on."""
    seen: list[str | None] = []
    evaluate = runs.evaluate

    def watched(*args, **kwargs):
        seen.append(kwargs.get("role"))
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(runs, "evaluate", watched)
    return seen


def test_the_test_split_is_seen_once_by_the_networks_that_are_reported(tmp_path, monkeypatch):
    seen = roles(monkeypatch)
    found, grid = tuned(ASKED, TINY, load_data("digits"), tmp_path, Tell())
    assert (seen.count("validation"), seen.count("test")) == (4, 2)  # three decays and a second seed; two are reported
    assert (grid["test_accuracy"].notna() == grid["chosen"]).all()
    (group,) = found.values()
    assert [run.test for run in group] == list(grid.loc[grid["chosen"], "test_accuracy"])
    seen.clear()
    again, _ = tuned(ASKED, TINY, load_data("digits"), tmp_path, Tell())
    assert (again, seen) == (found, [])


def test_trainings_of_before_keep_the_test_figure_that_they_have(tmp_path, monkeypatch):
    tuned(ASKED, TINY, load_data("digits"), tmp_path, Tell())
    for file in tmp_path.glob("*/run.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"test": 0.25}))
    seen = roles(monkeypatch)
    found, grid = tuned(ASKED, TINY, load_data("digits"), tmp_path, Tell())
    assert [run.test for group in found.values() for run in group] == [0.25, 0.25]
    assert (grid["test_accuracy"].notna() == grid["chosen"]).all()
    assert seen == []


@pytest.mark.parametrize("name", ["lorita-table-1a", "lorita-table-2"])
def test_training_samples_bound_all_that_is_trained_and_are_counted(name, tmp_path, monkeypatch):
    trained = []
    finetune = squeezing.finetune

    def watched(small, data, **kwargs):
        trained.append(data)
        return finetune(small, data, **kwargs)

    monkeypatch.setattr(squeezing, "finetune", watched)
    seeds = (3, 4)
    asked = Request(quick=True, depths=(1,), epochs=1, seeds=seeds, train_samples=100)
    outcome = reproduce(name, tmp_path, asked)
    assert outcome.about["train_images"] == 100
    if name == "lorita-table-2":  # the images of its own training, whose seed draws them
        whole = load_data("digits")
        own = [runs.restricted(whole, 100, seed).train.inputs for seed in seeds]
        assert [len(data.train) for data in trained] == [100, 100]
        assert all(torch.equal(data.train.inputs, inputs) for data, inputs in zip(trained, own, strict=True))
    more = reproduce(name, tmp_path / "more", replace(asked, seeds=(0,), train_samples=9999))
    assert more.about["train_images"] == len(load_data("digits").train)


@pytest.mark.parametrize("module", [adaptation, condlr, lenet5, trial])
def test_an_experiment_gives_the_threads_back(module, tmp_path, monkeypatch):
    inside = []

    def ended(*args):
        inside.append(torch.get_num_threads())
        raise ZeroDivisionError

    monkeypatch.setattr(module, "restricted", ended)
    for name in ("load_data", "base"):
        monkeypatch.setattr(module, name, lambda *_: None, raising=False)
    monkeypatch.setattr(trial, "GROUNDS", {"mnist": type("Ground", (), {"load": lambda self: None})()})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    case = type("Case", (), dict.fromkeys(("data", "train_samples", "seed", "line", "samples"), None))()
    case.task, case.network = next(iter(adaptation.TASKS)), "mnist"
    try:
        with pytest.raises(ZeroDivisionError):
            (module._measure if module is condlr else module.measure)(case, tmp_path / "a" / "b", None)
        assert (inside, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_the_networks_of_cdln_give_the_threads_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        reproduce("cdln-mlp", tmp_path, Request(quick=True, models=("plain",), seeds=(0,), epochs=1))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# --- drawings and files


def test_there_are_looks_for_more_lines_than_colours():
    assert [colour(number) for number in (0, 5, 11)] == [COLOURS[0], COLOURS[0], COLOURS[1]]
    assert len({tuple(look(number).values()) for number in range(25)}) == 25
    lines = pd.DataFrame(
        {"network": name, "parameters removed": 50.0, "FLOPs removed": 50.0, "compressed": 90.0, "fine-tuned": 91.0}
        for name in "abcdefg"
    )
    drawn = isvt.figure(lines, {})
    assert len(drawn.axes[0].lines) == 7
    sixth = {("m", depth): [] for depth in range(1, 8)}
    found = Measured(sixth, {}, {}, {}, {"m": {7: 0.3}})
    assert retention_figure(found, ("m",), ("global",)).axes[0].lines[-1].get_color() == colour(6)


def test_records_hold_every_digit():
    small = [3.123456789e-13, 1.23456789012e-9, float("nan"), float("inf")]
    table = pd.DataFrame({"c": small, "whole": pd.Series([1, 2, 3, 4]), "word": ["a", None, "ö", "d"]})
    assert [row["c"] for row in records(table)] == [*small[:2], None, None]
    assert records(table)[1] == {"c": small[1], "whole": 2, "word": None}
    assert records(pd.DataFrame({"yes": [True]}).iloc[:1]) == [{"yes": True}]
