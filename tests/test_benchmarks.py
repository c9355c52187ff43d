"""The benchmarks that other work relies on: they run, say what is missing, and go on after a stage that fails."""

import argparse
import ast
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SOURCE = Path(__file__).parents[1] / "src" / "rankfold"


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def results(folder: Path) -> dict[str, dict]:
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


def test_what_is_counted_and_timed_is_found_by_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one function of today's source: one that has moved would be counted as never called."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    measured = importlib.import_module("measured")
    parsed = {file.as_posix(): ast.parse(file.read_text()) for file in SOURCE.rglob("*.py")}
    known = [(file, node.name) for file, tree in parsed.items() for node in tree.body if hasattr(node, "name")]
    for name, wanted in (measured.COUNTED | measured.STAGES).items():
        assert len([at for at in known if measured.alike(*at, wanted)]) == 1, name


STAGES = ["equal", "vgg16", "vgg16-products", "resnet20", "block-7b", "decode", "vit", "cdln-vit", "cdln-updates"]


def test_a_drop_is_found_between_two_sizes_and_none_where_it_was_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    at_drop = importlib.import_module("lorita_depth").at_drop
    points = [(0.0, 91.0, 90.0), (20.0, 91.5, 90.5), (40.0, 90.5, 89.5), (60.0, 88.5, 86.5)]
    assert at_drop(points, 0.5) == {"removed": 40.0, "test": 89.5}
    assert at_drop(points, 1.5) == {"removed": 50.0, "test": 88.0}
    assert at_drop(points, 2.6) is None
    assert at_drop([(0.0, 91.0, 90.0), (20.0, 91.0, 90.0), (35.0, 90.9, 90.0)], 2.0) is None


def test_every_gpu_stage_runs_dry_in_the_order_of_worth(tmp_path: Path) -> None:
    done = run("gpu.py", "--dry", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == STAGES
    found = results(tmp_path)
    assert {row["state"] for row in found.values()} == {"done"}
    compared = {row["what"] for row in found["equal"]["found"]["comparisons"]}
    assert {"project, float32", "sequential, bfloat16", "training, bfloat16", "recovery, nuclear"} <= compared
    assert {"form cp of down", "form pivoted of hidden", "low-rank training, float32"} <= compared
    assert "sequential in parts, float32" in compared
    assert {row["N"] for row in found["resnet20"]["found"]["rows"]} == {3}
    kept = [file for file in tmp_path.glob("*.safetensors") if "n3" in file.name]
    assert kept
    assert all(file.stat().st_size < 16 << 20 for file in kept)
    again = run("gpu.py", "--dry", "--out", tmp_path, "--stages", "decode,vit")
    assert again.stdout.splitlines() == [
        f"{name}: done before, by {found[name]['device']}: --again runs it once more" for name in ("decode", "vit")
    ]


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
    given = argparse.Namespace(out=tmp_path, minutes=9.0, dry=False, data=None, again=False)
    assert runner.run(list(table), given, torch.device("cpu")) == 1
    assert capsys.readouterr().out.splitlines() == [
        "long: left out: needs about 100 min, 9.0 are left",
        "bad: failed: RuntimeError: two lines",
        "off: failed: 1 of its comparisons are off: 1 is not 2",
        "good: done: 60 s",  # no more than it asked for
    ]
    found = results(tmp_path)
    assert [found[name]["state"] for name in table] == ["left out", "failed", "failed", "done"]
    assert found["good"]["found"] == {"said": "60 s", "x": 3}
    assert runner.run(["good"], given, torch.device("cpu")) == 0
    assert "done before" in capsys.readouterr().out  # the same call goes on where the last one ended
    (tmp_path / "good.json").write_text("damaged")
    assert runner.run(["good"], given, torch.device("cpu")) == 0
    assert results(tmp_path)["good"]["state"] == "done"
    short = argparse.Namespace(**(vars(given) | {"minutes": 0.5}))
    assert runner.run(["good", "bad"], short, torch.device("cpu")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bad: left out: needs about 1 min, 0.5 are left"


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    done = run("gpu.py", "--device", "cpu", "--stages", "vgg16", "--out", tmp_path, "--data", tmp_path)
    assert done.returncode == 1
    assert "vgg16: failed: FileNotFoundError" in done.stdout
    assert "index.json" in done.stdout
    assert "--pack" in done.stdout


def test_images_are_packed_in_parts_and_a_missing_one_is_named(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = importlib.import_module("gpu_stages.arrays")
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {"train": (images, torch.arange(50) % 10), "test": (images[:20], torch.arange(20) % 10)}
    monkeypatch.setattr(arrays, "load_images", lambda name: sets)
    monkeypatch.setattr(arrays, "VALIDATION", 5)
    names = arrays.pack(tmp_path, most=20 * 3072)
    assert [name for name in names if "train_images" in name] == [f"cifar10/train_images-0{i}.npy" for i in range(3)]
    assert max(file.stat().st_size for file in (tmp_path / "cifar10").iterdir()) <= 20 * 3072 + 128
    data = arrays.cifar10(tmp_path)
    assert torch.equal(torch.cat([data.train.inputs, data.validation.inputs]), images)
    assert data.test.labels.tolist() == sets["test"][1].tolist()
    (tmp_path / "cifar10" / "train_images-01.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks train_images-01\.npy: make them with --pack"):
        arrays.cifar10(tmp_path)


def test_too_many_weights_are_not_kept(runner: ModuleType, tmp_path: Path) -> None:
    stages = importlib.import_module("gpu_stages")
    context = stages.Context(torch.device("cpu"), True, 0.0, out=tmp_path)
    assert context.keep("small", {"w": torch.zeros(1000)}) == "small.safetensors, 0.0 MB"
    assert (tmp_path / "small.safetensors").stat().st_size < 3000
    assert context.keep("large", {"w": torch.zeros(9 << 20)}) == "not kept: 18.0 MB"
    assert not (tmp_path / "large.safetensors").exists()


def test_what_a_bare_machine_needs_is_gathered_without_torch(runner: ModuleType, tmp_path: Path) -> None:
    command = runner.gathering(tmp_path)
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"pydantic", "pydantic-core", "tensorly", "pandas", "scikit-learn", "joblib"} <= set(command)
    assert "torch" not in command


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


def test_a_benchmark_that_is_killed_leaves_no_child_behind(tmp_path: Path) -> None:
    small = ("--blocks", "1", "--hidden", "64", "--ffn", "64", "--kv", "64", "--tokens", "100000", "--memory", "1GB")
    command = [sys.executable, str(BENCHMARKS / "streaming.py"), *small, "--out", str(tmp_path)]
    runner = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")
    until(lambda: children.read_text().split() or runner.poll() is not None)
    (child,) = (Path("/proc", pid) for pid in children.read_text().split())
    runner.kill()  # before the child can have looked for its parent, and while it reads its libraries
    runner.wait()
    until(lambda: not lives(child))


def lives(place: Path) -> bool:
    """Whether the process of a folder under /proc runs; one that ended and that nobody waited for does not."""
    try:
        return (place / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(true: Any) -> None:
    for _ in range(300):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("not within half a minute")
