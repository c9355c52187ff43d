"""`rankfold sweep`: every combination once, on joblib and on Dask, failures as rows, weight decay selected."""

from __future__ import annotations

import json
import math
import re
from contextlib import ExitStack

import pandas as pd
import pytest
from commands import rankfold
from hypothesis import given
from hypothesis import strategies as st

from rankfold.pipeline import ConfigError, parse_sweep, sweep
from rankfold.pipeline.trainings import sweep as sweep_module
from rankfold.pipeline.trainings.selection import selection
from rankfold.run.claim import claimed, holder
from rankfold.train import TrainingError
from rankfold.zoo import load_data

NETWORK = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

def loaders():
    from rankfold import zoo
    data = zoo.load_data("digits")
    return [*data.train.batches(64)], [*data.validation.batches(64)]

def broken():
    raise RuntimeError("no such layer")
"""
GRID = """
model: sweptnet:net
data: digits
epochs: 1
batch_size: 128
learning_rate: 0.01
out: grid
jobs: 1
grid:
  weight_decay: [1e-3, 0]
  depth: [1, 2]
  seed: [0, 1]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweptnet.py").write_text(NETWORK)
    (tmp_path / "grid.yaml").write_text(GRID)
    return tmp_path


def test_every_combination_runs_once_and_the_table_selects(here):
    result = rankfold("sweep", "grid.yaml", "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values == json.loads((here / "grid" / "sweep.json").read_text())
    assert len(values["runs"]) == 8
    assert sorted(path.name for path in (here / "grid").iterdir() if path.is_dir())[:2] == [
        "depth=1,weight_decay=0.0,seed=0",
        "depth=1,weight_decay=0.0,seed=1",
    ]
    for depth in (1, 2):
        rows = [row for row in values["table"] if row["depth"] == depth]
        assert [row["selected"] for row in sorted(rows, key=lambda row: row["validation_mean"])] in (
            [False, True],
            [True, False],  # equal means
        )
        for row in rows:
            runs = [r for r in values["runs"] if r["depth"] == depth and r["weight_decay"] == row["weight_decay"]]
            accuracies = pd.Series([run["validation_accuracy"] for run in runs])
            assert row["validation_mean"] == pytest.approx(accuracies.mean())
            assert row["validation_std"] == pytest.approx(accuracies.std())
            assert (row["test_mean"] is None) == (not row["selected"])
            assert all((run["test_accuracy"] is None) == (not row["selected"]) for run in runs)
    written = pd.read_csv(here / "grid" / "sweep.csv")
    assert list(written["validation_accuracy"]) == pytest.approx([run["validation_accuracy"] for run in values["runs"]])

    # the same command: nothing is trained again, but what is unfinished
    unfinished = here / "grid" / "depth=2,weight_decay=0.001,seed=1"
    (unfinished / "result.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in (here / "grid").glob("*/result.json")}
    again = rankfold("sweep", "grid.yaml")
    assert again.exit_code == 0, again.stderr
    assert "7 of 8 runs are finished already" in again.stderr
    assert "8 of 8: depth=2,weight_decay=0.001,seed=1: validation" in again.stderr
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert again.stdout.count("*") == 3  # a star for each depth, and what it means
    assert "* marks the weight decay chosen for each depth: highest mean validation accuracy" in again.stdout
    assert json.loads((here / "grid" / "sweep.json").read_text())["table"] == values["table"]


def test_a_failed_run_is_a_row_with_its_reason(here):
    (here / "grid.yaml").write_text(
        "model: sweptnet:net\ndata: digits\nepochs: 1\nout: grid\njobs: 1\n"
        "grid: {model: ['sweptnet:net', 'sweptnet:broken'], batch_size: [512], weight_decay: [0.0, 0.1]}\n"
    )
    result = rankfold("sweep", "grid.yaml")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("1 of 1 failed") == 2
    assert result.stdout.count("no such layer") == 2
    runs = pd.read_csv(here / "grid" / "sweep.csv")
    assert list(runs["error"].notna()) == [False, False, True, True]
    assert list(runs["validation_accuracy"].isna()) == [False, False, True, True]
    assert (here / "grid" / "model=sweptnet%3Anet,batch_size=512,weight_decay=0.0" / "result.json").exists()


def test_a_sweep_in_which_every_run_failed_has_failed(here):
    """And one over data without a test part has a table without figures of it."""
    (here / "grid.yaml").write_text(
        "model: sweptnet:net\ndata: sweptnet:loaders\nepochs: 1\nout: grid\njobs: 1\ngrid: {weight_decay: [0.0, 0.1]}\n"
    )
    result = rankfold("sweep", "grid.yaml")
    assert result.exit_code == 0, result.stderr
    assert list(pd.read_csv(here / "grid" / "sweep.csv")["test_accuracy"].isna()) == [True, True]
    for more in ((), ("--json",)):
        result = rankfold("sweep", "grid.yaml", "--set", "model=sweptnet:broken", "-o", "failing", *more)
        assert result.exit_code == 1
        assert "no such layer" in result.stdout


def test_processes_of_joblib_and_threads_of_dask_compute_the_same(here):
    from distributed import LocalCluster

    load_data("digits")
    base = {"model": "digits-cnn", "epochs": 1, "batch_size": 512, "jobs": 2}
    grid = {"grid": {"seed": [0, 1]}}
    local = sweep(parse_sweep(base | {"out": "local"} | grid))
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc"
    ) as cluster:
        distant = sweep(parse_sweep(base | {"out": "distant"} | grid), scheduler=cluster.scheduler_address)
    columns = ["seed", "validation_accuracy", "validation_loss", "test_accuracy", "error"]
    pd.testing.assert_frame_equal(local.runs[columns], distant.runs[columns])
    assert local.runs["validation_loss"].nunique() == 2
    assert local.runs["error"].isna().all()
    assert (here / "distant" / "seed=1" / "model.safetensors").exists()


def test_a_run_elsewhere_ends_when_its_sweep_has_and_is_taken_up_again(here, monkeypatch):
    monkeypatch.setattr(sweep_module, "_LOOK", 0.0)
    (config,) = parse_sweep({"model": "digits-cnn", "epochs": 3, "out": "grid", "grid": {"seed": [0]}}).runs

    def listen(what, done, total):
        if what == "training" and 3 * done > total:  # in the second epoch
            sweeps.close()

    with ExitStack() as sweeps:
        sweeps.enter_context(claimed(here / "grid", what="sweep"))
        work = sweep_module._Runs(here, False, (str(here / "grid"), holder(here / "grid").mark))
        with pytest.raises(TrainingError, match="has ended"):
            work.do(config, listen)
    with claimed(here / "grid"), pytest.raises(TrainingError, match="has ended"):  # of another sweep
        work.do(config, listen)
    metrics = (here / "grid" / "seed=0" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 1  # the epoch that was done is kept
    result = sweep(parse_sweep({"model": "digits-cnn", "epochs": 3, "out": "grid", "grid": {"seed": [0]}}))
    assert result.runs["error"].isna().all()


def test_bad_grids_are_one_line_before_any_run(here):
    for change, words in (
        ({"grid": None}, "key grid is missing"),
        ({"grid": {"seed": 3}}, "grid.seed must be a list"),
        ({"grid": {"sed": [3]}}, "unknown key sed; did you mean seed"),
        ({"grid": {"depth": [1, 0]}}, "depth"),
        ({"grid": {"out": ["a"]}}, "outside of grid"),
        ({"grid": {"weight_decay": [0.001, "1e-3"]}}, "weight_decay=0.001 is given twice"),
        ({"jobs": 0}, "jobs must be"),
        ({"out": None}, "key out is missing"),
        ({"theads": 2}, "did you mean threads"),
    ):
        values = {"model": "digits-cnn", "out": "grid", "grid": {"seed": [0]}} | change
        with pytest.raises(ConfigError, match=words):
            parse_sweep(values)
    result = rankfold("sweep", "nothing.yaml")
    assert (result.exit_code, result.stderr) == (1, "error: nothing.yaml: No such file or directory\n")
    result = rankfold("sweep", "grid.yaml", "--scheduler", "nonsense://nowhere")
    assert result.exit_code == 1
    assert "no Dask scheduler answers" in result.stderr
    assert not (here / "grid").exists()


def test_low_rank_and_none_in_one_grid(here):
    asked = {"model": "digits-cnn", "data": "digits", "out": "low", "epochs": 1, "jobs": 1}
    found = sweep(parse_sweep(asked | {"grid": {"dlrt": [None, {"rank": 4}]}}))
    assert found.runs["error"].isna().all()
    assert list(found.runs["dlrt"].isna()) == [True, False]
    assert sorted(place.name for place in (here / "low").iterdir() if place.is_dir()) == [
        "dlrt=%7B%22rank%22%3A%204%7D", "dlrt=None",
    ]  # fmt: skip
    for key, value in (("way", {"name": "cuttlefish"}), ("objective", "classification")):
        runs = parse_sweep(asked | {"grid": {key: [None, value]}}).runs
        assert [getattr(run, key) is None for run in runs] == [True, False]
        assert runs[0].out == f"low/{key}=None"


def test_the_table_shows_what_was_asked(here):
    """And not what pandas makes of a column of whole numbers with none among them."""
    (here / "grid.yaml").write_text(
        "model: digits-cnn\ndata: digits\nepochs: 1\nbatch_size: 512\nout: grid\njobs: 1\n"
        "grid: {clip_norm: [null, 1.0], dlrt.rank: [null, 4]}\n"
    )
    result = rankfold("sweep", "grid.yaml")
    assert result.exit_code == 0, result.stderr
    asked = [("null", "null"), ("null", "4"), ("1.0", "null"), ("1.0", "4")]
    assert [tuple(line.split()[:2]) for line in result.stdout.splitlines()[1:5]] == asked
    lines = (here / "grid" / "sweep.csv").read_text().splitlines()
    assert [tuple(line.split(",")[:2]) for line in lines] == [("clip_norm", "dlrt.rank"), *asked]
    for rows in json.loads((here / "grid" / "sweep.json").read_text()).values():
        if isinstance(rows, list):
            assert [json.dumps([row["clip_norm"], row["dlrt.rank"]]) for row in rows] == [
                "[null, null]", "[null, 4]", "[1.0, null]", "[1.0, 4]",
            ]  # fmt: skip


def test_names_that_no_disk_takes_are_those_that_were_written_or_a_digest():
    asked = {"model": "digits-cnn", "out": "x"}
    low = [{"rank": rank, "window": 5, "reach": 7} for rank in (4, 8)]
    (short, *_), (long, *_) = (parse_sweep(asked | {"grid": grid}).runs for grid in ({"dlrt": low}, {"dlrt": low} | {
        f"augment.{key}": [value] for key, value in (("crop_padding", 4), ("flip", True))
    } | {"where": ["*" * 200]}))  # fmt: skip
    assert short.out == "x/dlrt=%7B%22rank%22%3A%204,%20%22window%22%3A%205,%20%22reach%22%3A%207%7D"
    assert re.fullmatch(r"x/dlrt,augment\.crop_padding,augment\.flip,where-[0-9a-f]{8}", long.out)
    every = parse_sweep(asked | {"grid": {"dlrt": low, "where": ["*" * 200]}}).runs
    assert len({run.out for run in every}) == 2


def test_nested_keys_and_a_sweep_under_torchrun(here, monkeypatch):
    asked = parse_sweep(
        {"model": "digits-cnn", "out": "x", "grid": {"seed": [3], "augment.flip": [True, False], "inner": [[64, 64]]}}
    )
    assert [config.recipe.augment.flip for config in asked.runs] == [True, False]
    assert asked.runs[0].out == "x/augment.flip=True,inner=%5B64,%2064%5D,seed=3"
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    result = rankfold("sweep", "grid.yaml")
    assert result.exit_code == 1
    assert "without torchrun" in result.stderr


RUNS = st.lists(
    st.tuples(
        st.sampled_from([1, 3]),  # depth
        st.sampled_from([0.0, 1e-4, 1e-3]),  # weight decay
        st.integers(0, 2),  # seed
        st.sampled_from([0.1, 0.5, 0.9]),  # accuracy
        st.sampled_from(["whole", "whole", "error", "nan", "inf", "loss"]),  # how it ended
    ),
    min_size=1,
    max_size=14,
    unique_by=lambda run: run[:3],
)


def _frame(runs):
    return pd.DataFrame(
        [
            {
                "depth": depth,
                "weight_decay": decay,
                "seed": seed,
                "error": "broken" if how == "error" else None,
                "warning": None,
                "directory": "d",
                "validation_accuracy": {"error": None, "nan": math.nan, "inf": math.inf}.get(how, value),
                "validation_loss": {"error": None, "whole": 1.0}.get(how, math.nan),
                "test_accuracy": None if how == "error" else value,
            }
            for depth, decay, seed, value, how in runs
        ]
    )


def _chosen(runs, depth):
    """The rule of `selection` said again, run by run."""
    candidates = []
    for decay in {decay for d, decay, *_ in runs if d == depth}:
        part = [(value, how == "whole") for d, dec, _, value, how in runs if (d, dec) == (depth, decay)]
        values = [value for value, whole in part if whole]
        if values:
            candidates.append((len(values) == len(part), round(sum(values) / len(values), 9), decay))
    return max(candidates)[2] if candidates else None


@given(RUNS)
def test_selection_takes_the_best_validation_of_each_depth(runs):
    table = selection(_frame(runs), ["weight_decay", "depth", "seed"])
    for depth in {run[0] for run in runs}:
        rows = table[(table["depth"] == depth) & table["selected"]]
        wanted = _chosen(runs, depth)
        assert list(rows["weight_decay"]) == ([] if wanted is None else [wanted])
    assert table[~table["selected"]]["test_mean"].isna().all()
    assert table[table["selected"]]["test_mean"].notna().all()


def test_a_decay_of_which_one_seed_broke_down_is_not_judged_by_its_lucky_seed():
    runs = [
        (1, 1e-4, 0, 0.9, "whole"),
        (1, 1e-4, 1, 0.9, "whole"),
        (1, 1e-3, 0, 0.91, "whole"),
        (1, 1e-3, 1, 0.9, "nan"),
    ]
    table = selection(_frame(runs), ["weight_decay", "seed"])
    assert list(table["selected"]) == [True, False]
    assert list(table["failed"]) == [0, 1]
    assert table["test_mean"][0] == pytest.approx(0.9)
    only = selection(_frame([(1, 1e-4, 0, 0.9, "nan")]), ["weight_decay", "seed"])
    assert not only["selected"].any()


def test_the_law_of_selection_rejects_a_choice_by_test_accuracy():
    runs = _frame([(1, 0.0, 0, 0.9, "whole"), (1, 1e-3, 0, 0.5, "whole")])
    runs["test_accuracy"] = [0.5, 0.9]
    table = selection(runs, ["weight_decay", "depth", "seed"])
    by_test = selection(runs.assign(validation_accuracy=runs["test_accuracy"]), ["weight_decay", "depth", "seed"])
    assert list(table[table["selected"]]["weight_decay"]) == [0.0]
    assert list(by_test[by_test["selected"]]["weight_decay"]) == [1e-3]
