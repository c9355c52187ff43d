"""What the doctor finds is what is here; which form pays is told by times."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from rankfold.cli.main import app
from rankfold.pipeline import health
from rankfold.pipeline.health import Pays, examine, paying


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
    assert "not here: put it into RANKFOLD_DATA" in said


def test_without_a_folder_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)
    assert examine().data_folder is None
    assert "RANKFOLD_DATA is not set" in invoke()


def test_a_form_pays_up_to_the_first_rank_that_is_not_faster() -> None:
    assert Pays(8, 1, "factored", 1.0, {0.25: 0.5, 0.5: 0.9, 0.75: 1.2}).up_to == 0.5
    assert Pays(8, 1, "factored", 1.0, {0.25: 0.97, 0.5: 0.5}).up_to is None  # within noise at the smallest rank
    assert Pays(8, 1, "factored", 1.0, {0.75: 0.2, 0.25: 0.1}).up_to == 0.75


def test_both_forms_are_timed_at_every_width_and_batch() -> None:
    rows = list(paying((16, 32), (1, 2), rounds=3, seconds=0.001))
    assert [(row.width, row.batch, row.form) for row in rows] == [
        (width, batch, form) for width in (16, 32) for batch in (1, 2) for form in ("factored", "pivoted")
    ]
    assert all(set(row.ms) == set(health.FRACTIONS) and row.dense_ms > 0 for row in rows)


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = health.paying
    monkeypatch.setattr(health, "paying", lambda **given: real((16,), (1,), rounds=3, seconds=0.001, **given))
    said = invoke("--latency", "--precision", "bfloat16")
    assert "faster in this form up to" in said
    assert "factored" in said
    assert "pivoted" in said
    assert len(json.loads(invoke("--latency", "--json"))["latency"]) == 2
