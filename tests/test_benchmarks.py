"""The benchmarks that other work relies on: they run, say what is missing, and go on after a stage that fails."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def results(folder: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_every_gpu_stage_runs_dry(tmp_path: Path) -> None:
    done = run("gpu.py", "--dry", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert {name: row["state"] for name, row in found.items()} == {"equal": "done", "vgg16": "done"}
    compared = {row["what"] for row in found["equal"]["found"]["comparisons"]}
    assert {"project, float32", "sequential, bfloat16", "training, bfloat16", "recovery, nuclear"} <= compared
    assert len(done.stdout.splitlines()) == 2


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


def test_a_stage_that_fails_or_does_not_fit_is_one_line_and_the_others_go_on(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = importlib.import_module("gpu_stages")

    def raises(context: Any) -> dict[str, Any]:
        raise RuntimeError("two\nlines")

    table = {
        "long": stages.Stage("long", 100, lambda context: {"said": "never"}),
        "bad": stages.Stage("bad", 1, raises),
        "off": stages.Stage("off", 1, lambda context: {"wrong": ["1 is not 2"]}),
        "good": stages.Stage("good", 1, lambda context: {"said": f"{context.seconds_left:.0f} s", "x": 3}),
    }
    monkeypatch.setattr(stages, "STAGES", table)
    given = argparse.Namespace(out=tmp_path, minutes=9.0, dry=False, data=None)
    assert runner.run(list(table), given, torch.device("cpu")) == 1
    assert capsys.readouterr().out.splitlines() == [
        "long: left out: needs about 100 min, 9.0 are left",
        "bad: failed: RuntimeError: two lines",
        "off: failed: 1 of its comparisons are off: 1 is not 2",
        "good: done: 540 s",
    ]
    found = results(tmp_path)
    assert [found[name]["state"] for name in table] == ["left out", "failed", "failed", "done"]
    assert found["good"]["found"] == {"said": "540 s", "x": 3}
    assert runner.run(["good"], given, torch.device("cpu")) == 0


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    done = run("gpu.py", "--device", "cpu", "--stages", "vgg16", "--out", tmp_path, "--data", tmp_path)
    assert done.returncode == 1
    assert "vgg16: failed: FileNotFoundError" in done.stdout
    assert "train_images.npy" in done.stdout
    assert "--pack" in done.stdout


def test_what_is_not_equal_is_seen(runner: ModuleType) -> None:
    equal = importlib.import_module("gpu_stages.equal")
    one = torch.ones(4)

    def verdict(found: torch.Tensor) -> bool:
        return equal.compared("x", 1e-3, lambda: (one, found))()["equal"]

    assert verdict(one * (1 + 1e-4))
    assert not verdict(one * 1.01)
    assert not verdict(one * float("nan"))
    raised = equal.compared("x", 1e-3, lambda: (one, one / torch.zeros(3)))()
    assert not raised["equal"]
    assert raised["said"].startswith("RuntimeError")


def test_missing_packages_are_named(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "NEEDED", {"json": "json", "no_such_module": "no-such-package"})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--list"])
    assert runner.main() == 2
    assert capsys.readouterr().out.startswith("missing: no-such-package;")


def test_two_commits_are_measured_and_compared(tmp_path: Path) -> None:
    root = BENCHMARKS.parent
    done = run("two_commits.py", root, root, "--jobs", "help,show", "--rounds", 1, "--out", tmp_path / "x")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = json.loads((tmp_path / "x").read_text())["jobs"]
    assert set(jobs) == {"help", "show"}
    for job in jobs.values():
        assert min(job["median"]["a"].values()) > 0
        assert set(job["ratio"]) == {"seconds", "wall", "peak_mb"}
        assert len(job["ratios"]["seconds"]) == 1
    assert "no job nonsense" in run("two_commits.py", root, root, "--jobs", "nonsense").stderr


def test_costly_things_are_counted() -> None:
    """Singular values of six matrices, and no pass over data."""
    done = run("measured.py", "counts", "analyze", "digits-cnn", "--no-plots")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["decompositions"] == found["matrices decomposed"] == 6
    assert found["searches for sites"] == 1
    assert "forward passes" not in found
