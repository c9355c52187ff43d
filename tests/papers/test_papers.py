"""The papers' experiments: published numbers, truncation in place, trainings that are read back, and each in small."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from commands import rankfold
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from rankfold.compress.ranks.options import BudgetError
from rankfold.papers import EXPERIMENTS, quick, reproduce, runs
from rankfold.papers.lorita import squeezing, truncation
from rankfold.papers.lorita.squeezing import ISVT, OURS, Budget, budgets_of, globally_truncated, place_of
from rankfold.papers.lorita.truncation import (
    Point,
    by_kind,
    curve,
    decomposed,
    drop_at,
    needed,
    ranks_at,
    retained,
    truncated,
)
from rankfold.papers.published import TABLE_2, TABLE_3, TABLE_4, TABLE_5, Row, Table
from rankfold.papers.request import Request
from rankfold.papers.runs import Case, Trained, train_all
from rankfold.papers.selection import choose
from rankfold.papers.writing import against, markdown, records
from rankfold.pipeline import Tell
from rankfold.run import cells
from rankfold.sites import sites
from rankfold.train import Recipe
from rankfold.zoo import Split, load_data

TINY = Recipe(epochs=2, batch_size=64, optimizer="adam", learning_rate=3e-3)


# --- published numbers


def contradictions(row: Row, table: Table) -> bool:
    """Whether a row's columns exclude each other, beyond the rounding of what is printed."""
    params_step = 0.0005 if row.params < 0.1 else 0.005  # millions
    flops = 100 * (1 - row.flops / table.flops)
    params = 100 * (1 - row.params / table.params)
    return (
        abs(row.compressed - row.accuracy - row.drop) > 0.015
        or abs(flops - row.flops_drop) > 0.3
        or abs(params - row.params_drop) > 0.15 + 100 * params_step / table.params + 100 * 0.005 * (table.params < 1)
    )


@pytest.mark.parametrize("table", [TABLE_2, TABLE_3, TABLE_4, TABLE_5], ids=lambda table: table.model)
def test_published_rows_agree_with_themselves_or_say_where_not(table: Table) -> None:
    """A digit that was copied wrongly shows, since each row states the same facts twice."""
    for row in table.rows:
        assert contradictions(row, table) == bool(row.note), row


@pytest.mark.parametrize("change", [{"compressed": 91.2}, {"flops": 19.47}, {"params": 0.15}])
def test_a_digit_copied_wrongly_is_noticed(change: dict[str, float]) -> None:
    assert contradictions(replace(TABLE_2.rows[0], **change), TABLE_2)


def test_published_sizes_become_budgets() -> None:
    first, *rest = budgets_of(TABLE_2.own(3))
    assert (first.flops, first.params) == pytest.approx((0.453, 0.39))
    assert len(rest) == 2
    assert len(budgets_of([*TABLE_2.own(3), *TABLE_2.own(3)])) == 3


# --- truncation in place


def network(seed: int, widths: tuple[int, ...] = (9, 7, 6, 4)) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(n, m) for n, m in pairwise(widths)]
    for layer in layers:
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
    return nn.Sequential(*layers).eval()


def brute_force(model: nn.Module, fraction: float, *, normalised: bool = True) -> dict[str, int]:
    """GSVT by its definition: all values in one list, the largest kept, at least one of each matrix."""
    values = {site.name: torch.linalg.svdvals(site.matrix(model).double()) for site in sites(model)}
    ranked = sorted(
        (-float(v / s[0] if normalised else v), name, i) for name, s in values.items() for i, v in enumerate(s)
    )
    kept = math.floor(fraction * len(ranked) + 1e-6)
    first = dict.fromkeys(values, 1)
    for count in range(kept + 1):
        ranks = dict(first)
        for _, name, i in ranked[:count]:
            ranks[name] = max(ranks[name], i + 1)
        if sum(ranks.values()) <= kept:
            best = ranks
    return best


@given(seed=st.integers(0, 10_000), fraction=st.floats(0.25, 1.0))
def test_global_ranks_are_those_of_the_definition(seed: int, fraction: float) -> None:
    model = network(seed)
    assert ranks_at(decomposed(model), "global", fraction, measure="values") == brute_force(model, fraction)


def test_without_dividing_by_the_largest_value_global_ranks_differ() -> None:
    """The oracle above rejects what the paper does not mean; scaling a layer must change nothing."""
    model = network(0)
    scaled = copy.deepcopy(model)
    scaled[0].weight.data *= 100
    ranks = ranks_at(decomposed(model), "global", 0.5)
    assert ranks_at(decomposed(scaled), "global", 0.5) == ranks
    assert brute_force(scaled, 0.5, normalised=False) != brute_force(scaled, 0.5)


@given(
    seed=st.integers(0, 10_000),
    fraction=st.floats(0.3, 1.0),
    rule=st.sampled_from(truncation.RULES),
    measure=st.sampled_from(truncation.MEASURES),
)
def test_no_more_is_retained_than_asked(seed: int, fraction: float, rule, measure) -> None:
    known = decomposed(network(seed))
    ranks = ranks_at(known, rule, fraction, measure=measure)
    kept = dict(zip(truncation.MEASURES, retained(known, ranks), strict=True))[measure]
    assert kept <= fraction + 1e-6
    whole = ranks_at(known, rule, 1.0, measure=measure)
    assert whole == {site.name: min(site.shape) for site in known.sites}


def test_groups_are_ranked_by_themselves() -> None:
    """What one group's values are makes no difference to the other's ranks."""
    model = network(1)
    other = copy.deepcopy(model)
    other[2].weight.data = torch.diag(torch.tensor([1.0, 1e-3, 1e-3, 1e-3])) @ torch.eye(4, 6)
    group = {"0": "a", "1": "a", "2": "b"}
    one, two = (ranks_at(decomposed(m), "global", 0.5, lambda site: group[site.name]) for m in (model, other))
    assert (one["0"], one["1"]) == (two["0"], two["1"])
    alone, pair = (ranks_at(decomposed(m), "global", 0.5) for m in (model, other))
    assert alone != pair


def test_less_than_one_value_of_each_matrix_is_refused() -> None:
    known = decomposed(network(0))
    with pytest.raises(BudgetError):
        ranks_at(known, "local", 0.01)
    with pytest.raises(BudgetError):
        ranks_at(known, "local", 0.01, lambda site: site.name)
    # a small group (here the last matrix, of rank 4) does not keep the others from going lower
    ranks = ranks_at(known, "local", 0.2, lambda site: str(site.shape[0] == 4))
    assert ranks == {"0": 1, "1": 1, "2": 1}


@given(seed=st.integers(0, 1000), rank=st.integers(1, 4))
def test_matrices_are_truncated_and_put_back(seed: int, rank: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Flatten(), nn.Linear(20, 4)).eval()
    before = copy.deepcopy(model.state_dict())
    known = decomposed(model)
    with truncated(known, {site.name: rank for site in known.sites}) as shortened:
        for site in sites(shortened):
            u, s, vh = torch.linalg.svd(before[site.parameter].flatten(1).double(), full_matrices=False)
            best = (u[:, :rank] * s[:rank]) @ vh[:rank]  # Eckart–Young
            torch.testing.assert_close(site.matrix(shortened).double(), best, atol=1e-5, rtol=1e-5)
        with pytest.raises(ZeroDivisionError), truncated(known, {site.name: 1 for site in known.sites}):
            raise ZeroDivisionError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def planted() -> tuple[nn.Sequential, Split]:
    """A linear classifier of 8 classes whose first matrix (16 × 16) has rank 8, and data that need all of it."""
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 8, bias=False)
    first.weight.data = basis[:, :8] @ torch.diag(torch.linspace(2, 1, 8)) @ basis[:, 8:].T
    second.weight.data = basis[:, :8].T.contiguous()
    labels = torch.arange(8).repeat(20)
    inputs = torch.eye(8)[labels] @ basis[:, 8:].T
    return nn.Sequential(first, second).eval(), Split(inputs, labels, torch.zeros(1), torch.ones(1))


def test_accuracy_is_kept_down_to_the_planted_rank_and_no_further() -> None:
    model, data = planted()
    sixteenths = [count / 16 for count in range(1, 17)]
    points = curve(decomposed(model, "0"), data, ("local",), sixteenths)
    ranks = {point.ranks["0"]: point.accuracy for point in points}
    assert ranks[8] == ranks[16] == 1.0
    assert ranks[7] < 1.0
    assert needed(points, "local", 0.0) == 0.5
    assert drop_at(points, "local", 0.5) == 0.0 < drop_at(points, "local", 0.45)
    # the second matrix (8 × 16) tells 8 classes apart with 7 of its values, so that 7/8 is needed of both
    assert needed(curve(decomposed(model), data, ("local",), sixteenths), "local", 0.0) == 7 / 8


def line(*pairs: tuple[float, float]) -> list[Point]:
    return [Point("global", x, x / 2, {}, 0.9 - drop, drop) for x, drop in pairs]


def test_what_is_needed_counts_from_above() -> None:
    points = line((0.1, 0.0), (0.2, 0.05), (0.3, 0.001), (0.5, -0.01), (1.0, 0.0))
    assert needed(points, "global", 0.001) == 0.3  # at 0.1 it is right by accident: 0.2 is not
    assert needed(points, "global", 0.05) == 0.1
    assert needed(points, "global", 0.001, "values") == 0.15
    assert drop_at(points, "global", 0.25) == 0.05
    assert drop_at(points, "global", 0.25, "values") == -0.01
    assert math.isnan(drop_at(points, "global", 0.05))
    assert math.isnan(drop_at(points, "local", 0.5))


# --- trainings


def case() -> Case:
    return Case(quick.FULLY_CONNECTED, 2, TINY, quick.DATA, train_samples=128)


def train(one: Case, directory: Path) -> Trained:
    return train_all([one], directory, 1, Tell())[0]


def test_a_training_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train(case(), tmp_path)
    assert not list(tmp_path.rglob("checkpoint-*"))
    weights = first.network().state_dict()
    assert set(weights) == set(quick.fcn().state_dict())  # folded
    (tmp_path / case().name / "run.json").unlink()
    again = train(case(), tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in again.network().state_dict().items())
    write = cells.write_atomically

    def killed(file: Path, data: bytes) -> None:
        """After the last epoch, before the run is closed."""
        if file.name == "run.json":
            raise ZeroDivisionError
        write(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(cells, "write_atomically", killed)
        other = replace(case(), depth=3)
        with pytest.raises(ZeroDivisionError):
            train(other, tmp_path)
    resumed = train(other, tmp_path)
    assert resumed.epochs == TINY.epochs
    monkeypatch.setattr(runs, "fit", None)
    assert train(other, tmp_path) == resumed
    assert train(case(), tmp_path).best_epoch == again.best_epoch
    assert train_all([other], tmp_path, 1, Tell()) == train_all([other], tmp_path, 4, Tell()) == [resumed]
    with pytest.raises(TypeError):  # what was not trained is trained
        train(replace(case(), depth=1), tmp_path)
    for text in ("{", '{"validation": 1.0}'):
        (tmp_path / other.name / "run.json").write_text(text)
        with pytest.raises(ValueError, match=f"{other.name}.*: damaged.*to compute it again"):
            train(other, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 3},
        {"start": "random"},
        {"where": "hidden.*"},
        {"train_samples": 64},
        {"recipe": replace(TINY, seed=1)},
        {"recipe": replace(TINY, epochs=3)},
        {"model": quick.CONVOLUTIONAL},
    ],
)
def test_whatever_is_asked_otherwise_has_another_place(change: dict) -> None:
    assert replace(case(), **change).name != case().name


@pytest.mark.slow  # every job is a process that imports torch
def test_jobs_do_not_change_results(tmp_path: Path) -> None:
    cases = [replace(case(), recipe=replace(TINY, seed=seed)) for seed in (0, 1)]
    together = train_all(cases, tmp_path / "together", 2, Tell())
    alone = train_all(cases, tmp_path / "alone", 1, Tell())
    for one, other in zip(together, alone, strict=True):
        theirs = other.network().state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in one.network().state_dict().items())
    assert together[0].network().state_dict()["head.weight"].ne(alone[1].network().state_dict()["head.weight"]).any()


def test_a_collapse_is_told(tmp_path: Path) -> None:
    wild = replace(case(), start="random", depth=3, recipe=replace(TINY, learning_rate=50.0, epochs=3))
    trained = train(wild, tmp_path)
    assert trained.collapse or trained.stopped


def candidate(decay: float, validation: float, collapse: str | None = None) -> SimpleNamespace:
    recipe = replace(TINY, weight_decay=decay)
    return SimpleNamespace(
        case=SimpleNamespace(recipe=recipe), validation=validation, validation_count=10_000, collapse=collapse
    )


def test_weight_decay_is_the_largest_that_validation_cannot_tell_from_the_best() -> None:
    grid = [candidate(1e-5, 0.900), candidate(1e-4, 0.8975), candidate(1e-3, 0.8965)]  # one standard error is 0.003
    assert choose(grid) == 1e-4
    assert choose(grid, 0.0) == 1e-5
    assert choose(grid, 0.0035) == 1e-3
    assert choose([*grid, candidate(1e-2, 0.95, "collapsed")]) == 1e-4
    assert choose([candidate(1e-2, 0.1, "collapsed")]) == 1e-2


def test_global_truncation_goes_as_far_as_validation_does_not_notice() -> None:
    model, data = planted()
    start = globally_truncated(model, SimpleNamespace(validation=data))
    assert int(torch.linalg.matrix_rank(start[0].weight)) == 8
    assert torch.allclose(start[0].weight, model[0].weight, atol=1e-5)


def test_global_truncation_takes_the_ranks_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quick.cnn().eval()
    known = decomposed(copy.deepcopy(model))
    choices = [ranks_at(known, "global", fraction, by_kind) for fraction in (0.9, 0.8, 0.7, 0.6)]
    others = [ranks_at(known, "global", retained(known, ranks)[0], by_kind) for ranks in choices]
    assert choices != others  # a mean over both kinds, asked of each: not the same ranks
    for ranks in choices:
        point = Point("global", *retained(known, ranks), ranks, 0.9, 0.0)
        monkeypatch.setattr(squeezing, "curve", lambda *_, point=point: [point])
        start = decomposed(globally_truncated(model, SimpleNamespace(validation=None)))
        found = {name: int((each.svd[1] > 1e-5).sum()) for name, each in start.matrices.items()}
        assert found == ranks


# --- words and files


def test_a_table_in_markdown() -> None:
    table = pd.DataFrame({"network": ["a", "b"], "N": [1, 2], "accuracy": [0.97654321, math.nan]})
    assert markdown(table).splitlines() == [
        "| network | N | accuracy |",
        "|---------|--:|---------:|",
        "| a       | 1 |   0.9765 |",
        "| b       | 2 |        – |",
    ]
    assert records(table)[1] == {"network": "b", "N": 2, "accuracy": None}


def test_a_sentence_beside_the_published_number() -> None:
    assert against("x", 0.9812, 0.977, 5) == "x: 98.12 % over 5 seeds, 0.4 points above the published 97.7 %."
    assert against("x", 0.9701, 0.977, 1) == "x: 97.01 % over 1 seed, 0.7 points below the published 97.7 %."
    assert against("x", 0.9772, 0.977, 1) == "x: 97.72 % over 1 seed, as published."
    assert against("x", 0.9, None, 1) is None


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("lorita")])
def test_every_experiment_in_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = rankfold("reproduce", name, "--quick", "-o", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == (tmp_path / "result.md").read_text(encoding="utf-8")
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    first, *_ = result["tables"].values()
    assert first
    assert result["remarks"]
    for row in first:
        accuracy = row["accuracy"]
        assert 0 < accuracy <= 100
    for key in result["tables"]:
        assert len(pd.read_csv(tmp_path / f"{key}.csv")) == len(result["tables"][key])
    drawings = list(tmp_path.glob("*.svg"))
    assert drawings
    assert all(ET.parse(file).getroot().tag.endswith("svg") for file in drawings)
    if name not in ("lorita-table-1a", "lorita-table-2"):
        return
    # everything is read back: nothing is trained again
    monkeypatch.setattr(runs, "fit", None)
    monkeypatch.setattr("rankfold.papers.lorita.squeezing.finetune", None)
    again = rankfold("reproduce", name, "--quick", "-o", tmp_path, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["tables"] == result["tables"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["lorita-table-9"], "lorita-table-1a"),
        (["lorita-table-1a", "--weights", "x.safetensors"], "weights"),
        (["lorita-vit", "--finetune-epochs", 3], "finetune-epochs"),
        (["lorita-vit", "--finetune-rate", 0.001], "finetune-rate"),
        (["lorita-beyond", "--quick", "--finetune-rate", -1], "positive"),
        (["lorita-table-1a", "--depths", "0,1"], "at least 1"),
        (["lorita-table-1a", "--depths", "one"], "--depths"),
        (["lorita-table-1a", "--seeds", "1,1"], "twice"),
        (["lorita-table-1a", "--setting", "quick"], "stable, relaxed or paper"),
        (["lorita-beyond", "--quick", "--depths", "2"], "N = 3"),
        (["lorita-beyond", "--quick", "--models", "resnet20,resnet32"], "one model"),
        (["lorita-table-1a", "--tolerance", "1.5"], "tolerance"),
        (["lorita-table-1a", "--trials", "3"], "trials"),
        (["lorita-table-1z"], "did you mean lorita-table-1"),
        (["lorita-table-4"], "--data imagefolder:DIR"),
        (["collapse-warmup", "--quick", "--decays", "0.1,0.2"], "one weight decay"),
        (["adaptation-table", "--quick", "--models", "glue"], "glue"),
        (["ways-to-low-rank", "--quick", "--models", "vgg"], "vgg"),
        (["cdln-mlp", "--setting", "relaxed"], "relaxed"),
    ],
)
def test_what_the_words_alone_show_to_be_wrong_is_wrong_usage(arguments: list, word: str, tmp_path: Path) -> None:
    wrong = rankfold("reproduce", *arguments, "-o", tmp_path)
    assert wrong.exit_code == 2, wrong.output
    assert word in wrong.stderr.splitlines()[-1]
    assert wrong.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["lorita-table-1a", "--quick", "--models", "fcn-7"], "fcn-7"), (["lorita-cnn"], "RANKFOLD_DATA")],
)
def test_bad_input_is_one_line(arguments: list, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    monkeypatch.delenv("RANKFOLD_DOWNLOAD", raising=False)
    failed = rankfold("reproduce", *arguments, "-o", tmp_path)
    assert failed.exit_code == 1, failed.output
    (said,) = [text for text in failed.stderr.splitlines() if text.startswith("error: ")]
    assert word in said
    assert failed.stdout == ""


def test_a_rate_of_fine_tuning_serves_every_way_and_makes_another_point(tmp_path: Path) -> None:
    data = load_data("digits")
    for way in (OURS, ISVT):
        assert way.at(None) is way
        assert way.at(2e-4).recipe(data, 3) == replace(way.recipe(data, 3), learning_rate=2e-4)
        ways = [way.at(rate) for rate in (None, 2e-4, 1e-3)]
        assert len({place_of(quick.cnn(), data, each, Budget(0.5, 0.5), 3, tmp_path) for each in ways}) == 3
    assert OURS.recipe(data, 3).learning_rate != ISVT.recipe(data, 3).learning_rate
    assert OURS.recipe(data, 3).distill is not None
    assert ISVT.recipe(data, 3).distill is None


def test_a_given_network_is_compressed_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(quick.cnn().state_dict(), tmp_path / "given.safetensors")
    monkeypatch.setattr(runs, "fit", None)
    request = Request(quick=True, weights=tmp_path / "given.safetensors", finetune_epochs=0)
    outcome = reproduce("lorita-beyond", tmp_path / "out", request)
    assert outcome.table["accuracy"].nunique() == 1
    assert outcome.table["fine-tuned"].isna().all()
    assert (outcome.table["parameters removed"] >= 50).all()
    assert (outcome.table["FLOPs removed"] >= 50).all()
    assert set(outcome.tables) == {"table", "published"}
    assert ISVT.name in outcome.table["network"].iloc[-1]
