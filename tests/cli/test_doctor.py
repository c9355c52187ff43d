"""What the doctor finds is what is here; which form pays is told by times."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rankfold.cli.main import app
from rankfold.costs.machine import Machine
from rankfold.costs.table import LatencyTable
from rankfold.pipeline.advice import health
from rankfold.pipeline.advice import paying as pay
from rankfold.pipeline.advice.health import examine
from rankfold.pipeline.advice.paying import FRACTIONS, Pays, paying, spots


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["doctor", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_tells_versions_data_and_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnist").mkdir()
    for part in ("train", "test"):
        (tmp_path / "mnist" / f"{part}.parquet").touch()
    (tmp_path / "cifar10").mkdir()  # without files in it
    monkeypatch.setenv("RANKFOLD_DATA", str(tmp_path))
    monkeypatch.setenv("RANKFOLD_CACHE", str(tmp_path / "kept"))
    real = health._version
    monkeypatch.setattr(health, "_version", lambda name: "" if name == "peft" else real(name))
    told = json.loads(invoke("--json"))
    assert told["versions"]["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
    assert told["data"]["mnist"] == str(tmp_path / "mnist")
    assert told["data"]["cifar10"] is None
    assert told["cache"] == str(tmp_path / "kept")
    assert "peft" in told["missing"]["hf"]
    assert told["missing"]["tensorboard"] == []
    said = invoke()
    assert "lacks peft: pip install 'rankfold[hf]'" in said
    assert "not on this machine: put it into the folder RANKFOLD_DATA" in said


def test_without_a_folder_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    assert examine().data_folder is None
    assert "RANKFOLD_DATA is not set" in invoke()


def test_a_form_pays_up_to_the_first_rank_that_is_not_faster() -> None:
    assert Pays((16, 8), 1, "factored", 1.0, {2: 0.5, 4: 0.9, 6: 1.2}).up_to == 0.5
    assert Pays((8, 8), 1, "factored", 1.0, {2: 0.97, 4: 0.5}).up_to is None  # within noise at the smallest rank
    assert Pays((8, 8), 1, "factored", 1.0, {6: 0.2, 2: 0.1}).up_to == 0.75


def test_both_forms_are_timed_at_every_size_and_number_of_rows() -> None:
    rows = list(paying(((16, 8), (32, 32)), (1, 2), rounds=3, seconds=0.001))
    assert [(row.shape, row.rows, row.form) for row in rows] == [
        (shape, many, form) for many in (1, 2) for shape in ((16, 8), (32, 32)) for form in ("factored", "pivoted")
    ]
    assert all(set(row.ms) == {int(part * min(row.shape)) for part in FRACTIONS} for row in rows)
    assert all(row.dense_ms > 0 for row in rows)


def test_what_takes_too_long_is_not_timed() -> None:
    assert list(spots(((10, 10), (10_000, 10_000)), (1, 4096))) == [
        ((10, 10), 1), ((10_000, 10_000), 1), ((10, 10), 4096)
    ]  # fmt: skip


def test_from_the_command_line_it_measures_says_and_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, table = pay.paying, tmp_path / "times.json"
    few = ((16, 16), (24, 16), (32, 32), (48, 32))
    monkeypatch.setattr(pay, "paying", lambda **given: real(few, (1,), rounds=3, seconds=0.001, **given))
    said = invoke("--latency", "--precision", "bfloat16", "--table", str(table))
    assert "faster in this form" in said
    assert "factored" in said
    assert "pivoted" in said
    assert f"kept in {table} for {Machine.here()}" in said
    assert "Linear as it is, bfloat16: at other sizes the time is taken as a + b·weights + c·widths" in said
    found = json.loads(invoke("--latency", "--json", "--table", str(table)))
    assert len(found["latency"]) == 2 * len(few)
    kept = LatencyTable.of(table)
    assert {spot.arithmetic for spot in kept.curves} == {"bfloat16", "float32"}
    assert len(kept.curves) == 2 * len(few)
    assert found["latency_table"] is None
    monkeypatch.setenv("RANKFOLD_LATENCY", str(table))
    assert json.loads(invoke("--json"))["latency_table"] == str(table)
