"""Experiments of training at low rank: what is chosen, what is said, and each in small."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from rankfold.induce import dlrt_choice
from rankfold.induce.ways import WAYS
from rankfold.papers import reproduce
from rankfold.papers.dlrt import adaptation, condlr, lenet5, ways
from rankfold.papers.dlrt.grounds import GROUNDS, SHAKESPEARE, characters
from rankfold.papers.dlrt.tasks import tokens
from rankfold.papers.dlrt.trial import CHOICES, Case, measure
from rankfold.papers.request import Request
from rankfold.zoo import load_data


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
    said = " ".join(condlr.remarks(table, 1797))
    assert "1,797 test images" in said
    assert "costs 20.0 points" in said
    assert "does not reach the dense" in said
    assert "it reaches the dense" in said


def test_condlr_in_small_is_trained_attacked_and_read_back(tmp_path):
    asked = Request(quick=True, seeds=(0,), epochs=2)
    outcome = reproduce("condlr-mnist", tmp_path, asked)
    assert list(outcome.table.network) == ["dense", "low rank", "condition", "spread"]
    assert outcome.table.params.nunique() == 2  # of one size, but for the dense one
    assert len(outcome.tables["runs"]) == 8
    lines = outcome.tables["runs"]
    assert lines.chosen.sum() == 4
    for split, known in (("validation ", True), ("", lines.chosen)):  # test images are attacked of those alone
        assert (lines[[f"{split}{key} %" for key in ("clean", *condlr.ATTACKS)]].notna().all(axis=1) == known).all()
    assert lines.loc[~lines.chosen, "clean %"].isna().all()
    images = len(load_data("digits").test)
    assert (lines.loc[lines.chosen, "clean %"] * images / 100 % 1).round(6).isin((0, 1)).all()
    assert f", {images:,} test images;" in " ".join(outcome.remarks)
    again = reproduce("condlr-mnist", tmp_path, asked)
    pd.testing.assert_frame_equal(again.table, outcome.table)
    assert (tmp_path / "robustness.svg").exists()
    # cells of before attacked test images at once, of all images without attack
    for file in tmp_path.glob("runs/*/result.json"):
        values = json.loads(file.read_text(encoding="utf-8"))
        if "test" in values:
            shutil.rmtree(file.parent)
        else:
            attacked = dict.fromkeys(("clean", *condlr.ATTACKS), 0.25)
            file.write_text(json.dumps(values | {"clean": 0.75, "test": attacked}), encoding="utf-8")
    before = reproduce("condlr-mnist", tmp_path, asked)
    assert (before.table[["clean %", "linf 0.06 %"]] == 25).all(axis=None)
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 8  # nothing was attacked again


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


# --- LeNet5 beside what was logged


def test_lenet5_has_the_published_number_of_weights_and_logged_rows_are_nearer_to_true_counts():
    assert lenet5.weights(lenet5.network(lenet5.Case(lenet5.Line(), 0, 1))) == 430_500
    assert all(printed > removed for _, _, _, printed, removed in lenet5.LOGGED)
    # the arXiv version counts so: 47,975 weights at ranks 15, 46, 13 and 10, 88.86 % removed
    assert 15 * (20 + 25) + 46 * (50 + 500) + 13 * (500 + 800) + 10 * (10 + 500) == 47_975
    assert lenet5.LOGGED[4][4] == pytest.approx(92.9)


def test_lenet5_in_small_meets_each_budget_and_is_read_back(tmp_path):
    asked = Request(quick=True, seeds=(0,), epochs=3)
    outcome = reproduce("dlrt-lenet5", tmp_path, asked)
    table = outcome.table.set_index("network")
    assert list(table.index) == [line.words for line in lenet5.SMALL]
    assert table.loc["dense", "removed %"] == 0
    for line in lenet5.SMALL:
        if line.removed is not None:
            assert table.loc[line.words, "removed %"] >= 100 * line.removed - 1e-9
    again = reproduce("dlrt-lenet5", tmp_path, asked)
    pd.testing.assert_frame_equal(again.table, outcome.table)
    assert (tmp_path / "lenet5.svg").exists()


def test_what_is_said_of_lenet5_is_beside_the_true_counts():
    def row(network: str, removed: float, test: float) -> dict:
        return {"network": network, "removed %": removed, "test %": test, "validation %": test, "ranks": "1", "seed": 0}

    rows = [row("−92.9 %", 92.95, 99.2), row("−50 %, from rank 4", 50.0, 98.0), row("−50 %, from rank 50", 60.0, 98.2)]
    table = lenet5.summary(pd.DataFrame(rows), logged=True)
    assert list(table["removed %"])[3:] == [removed for *_, removed in lenet5.LOGGED]
    said = lenet5.remarks(table)
    assert said[0] == (
        "−92.9 %: 99.20 % on test with 93.0 % of the weights removed; they logged 98.12 % with 92.9 %, "
        "printed as 97.0 %."
    )
    assert said[1] == "−50 %, from rank 4: -0.20 points beside a start at rank 50, +25.0 % of its weights."


# --- all ways beside one another


def test_every_way_has_defaults_first_and_trials_of_its_own():
    for way, choices in CHOICES.items():
        first, *others = (Case(way, number, "quick", 0.4, 0, 1).settings for number in range(20))
        assert first == {"learning_rate": 0.05} | {key: values[0] for key, values in choices.items()}
        assert Case(way, 7, "fcn", 0.1, 3, 9).settings == others[6]  # of its number alone
        assert len({str(each) for each in others}) > 5
        assert all(each[key] in values for each in others for key, values in choices.items())
    assert set(WAYS) < set(CHOICES)


def test_the_trial_is_chosen_on_validation_and_test_figures_are_its_own():
    trials = [
        {"validation": v, "test": t, "share": share, "case": {"number": n, "share": 0.1}}
        for n, (v, t, share) in enumerate([(0.9, 0.5, 0.1), (0.95, 0.4, 0.09), (0.95, 0.9, 0.1), (0.99, 0.9, 1.0)])
    ]
    assert ways._best(trials) == 1  # the last one has diverged before it was small
    assert ways._best(trials[3:]) == 3


def test_a_seed_that_diverged_before_it_was_small_is_in_no_mean():
    line = {"network": "fcn", "share": 0.1, "way": "w", "params": 9, "cpu s": 1.0, "KiB": 1.0, "settings": ""}
    rows = [
        line | {"test %": test, "validation %": test, "kept": kept}
        for test, kept in ((90.0, 0.1), (99.0, 1.0), (92.0, 0.09))
    ]
    rows += [line | {"way": "v", "test %": 80.0, "validation %": 80.0, "kept": 0.1}]
    table = ways.summary(rows)
    assert list(table["test %"]) == [91.0, 80.0]
    assert list(table.beyond) == [1, 0]
    said = ways.remarks(table)
    assert (
        "fcn, 10 %: w diverged with 1 of the seeds before it had come within the share: those are in no mean." in said
    )


def test_ways_to_low_rank_in_small(tmp_path):
    outcome = reproduce("ways-to-low-rank", tmp_path, Request(quick=True, seeds=(0,), epochs=3, trials=1))
    table, trials = outcome.table, outcome.tables["trials"]
    assert set(table.way) == set(CHOICES)
    small = trials[trials.way != "dense"]
    assert (small.kept <= 0.4).all()
    dense = trials[trials.way == "dense"].iloc[0]
    assert dense.KiB * 1024 == 3 * 4 * dense.params  # weights, gradients, momentum
    assert float(trials[trials.way == "frobenius"].KiB.iloc[0]) < 0.5 * dense.KiB
    assert (tmp_path / "ways.svg").exists()
    with pytest.raises(ValueError, match="no network 'vgg'"):
        reproduce("ways-to-low-rank", tmp_path, Request(models=("vgg",)))


def test_a_way_that_finds_no_layer_is_left_out_with_its_reason(tmp_path, monkeypatch):
    others = {way: "no layer for it" for way in CHOICES if way not in ("dense", "frobenius", "pufferfish")}
    monkeypatch.setitem(GROUNDS, "quick", replace(GROUNDS["quick"], without=others))
    outcome = reproduce("ways-to-low-rank", tmp_path, Request(quick=True, seeds=(0,), epochs=1, trials=1))
    assert set(outcome.table.way) == {"dense", "frobenius", "pufferfish"}
    for way in others:
        assert f"quick: {way} is left out: no layer for it." in outcome.remarks


def test_of_resnet20_a_product_of_linear_layers_is_left_out():
    assert set(GROUNDS["resnet20"].without) == {"C-DLN"}
    assert not [site for site in dlrt_choice(GROUNDS["resnet20"].network())[0] if site.kind == "Linear"]


def test_ways_are_compared_on_a_transformer_too(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("To be, or not to be, that is the question.\n" * 150)
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    characters.cache_clear()
    data = characters()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [80, 10, 10]
    assert data.train.vocabulary == 17  # characters of that line
    try:
        for way in ("DLRT", "C-DLN"):
            found = measure(Case(way, 0, "transformer", 0.25, 0, 5, SHAKESPEARE), tmp_path, lambda *now: None)
            assert found["share"] <= 0.25
            assert found["test"] > 0.3, way  # one character in eight is a space
    finally:
        characters.cache_clear()


def test_without_the_text_it_is_said_where_it_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    characters.cache_clear()
    with pytest.raises(ValueError, match=r"needs text/tinyshakespeare\.txt in the folder that RANKFOLD_DATA names"):
        reproduce("ways-to-low-rank", tmp_path / "out", Request(models=("transformer",), trials=1, seeds=(0,)))


# --- adaptations beside one another


def test_adaptations_in_small_and_what_is_paired(tmp_path):
    outcome = reproduce("adaptation-table", tmp_path, Request(quick=True, seeds=(0, 1), trials=1, train_samples=200))
    table, trials = outcome.table.set_index("method"), outcome.tables["trials"]
    assert set(table.index) == set(adaptation.METHODS)
    assert (trials.params <= 404).all()  # rank 2 in each layer of 64-32-32-10
    by_seed = trials.pivot(index="seed", columns="method", values="test")
    assert table.loc["debora", "to adalora"] == pytest.approx((by_seed.debora - by_seed.adalora).mean())
    assert table.loc["debora", "± to adalora"] == pytest.approx((by_seed.debora - by_seed.adalora).std())
    assert table.loc["adalora", ["to adalora", "± to adalora"]].tolist() == [0, 0]
    assert (tmp_path / "adaptation.svg").exists()
    with pytest.raises(ValueError, match="no task 'glue'"):
        reproduce("adaptation-table", tmp_path, Request(models=("glue",)))


def test_ours_is_named_by_validation_and_not_by_test():
    rows = [
        {"task": "a", "method": "geolora", "validation": 70.0, "test": 10.0},
        {"task": "a", "method": "debora", "validation": 60.0, "test": 90.0},
        {"task": "a", "method": "lora", "validation": 99.0, "test": 99.0},
    ]
    assert adaptation.named_before_test(pd.DataFrame(rows)) == "geolora"


def test_every_method_has_as_many_trials():
    assert {len(known) for known in adaptation.CHOICES.values()} == {4}
    assert set(adaptation.CHOICES) == set(adaptation.METHODS)


def test_text_becomes_the_tokens_of_its_vocabulary(tmp_path):
    """Pieces with scores: the best two neighbours first, bytes for what has no piece."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256))]
    pieces += [("ab", -1.0), ("bc", -0.5), ("a", -9.0), ("b", -9.0), ("c", -9.0), (" ", -9.0)]
    content = (3).to_bytes(4, "little")
    for piece, score in pieces:
        content += np.float32(score).tobytes() + len(piece).to_bytes(4, "little") + piece.encode()
    (tmp_path / "tok.bin").write_bytes(content)
    names = [piece for piece, _ in pieces]
    found = [names[number] for number in tokens(tmp_path / "tok.bin", "abc ab\n")]
    assert found == ["a", "bc", " ", "ab", "<0x0A>"]
