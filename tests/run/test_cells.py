"""The runner of cells: order, no cell twice, resumption after any death, errors as rows, the same on every number of
processes; each law also meets a runner that breaks it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankfold.run.cells import Failed, Kept, named, run_cells


@dataclass(frozen=True)
class Square:
    """``mood``: "" computes, others misbehave."""

    number: int
    mood: str = ""

    @property
    def title(self) -> str:
        return f"square{self.number}"


def square(cell: Square, place: Path, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Leaves a trace of every time it was called."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "calls").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    if cell.mood == "slow":
        for step in range(4):
            progress(cell.title, step, 4)
            time.sleep(0.3)
    if cell.mood == "raises":
        raise ValueError(f"no square\nof {cell.number}")
    if cell.mood == "stuck":
        time.sleep(100)
    if cell.mood == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": cell.number**2, "third": cell.number / 3, "nothing": float("nan")}


def kept(directory: Path, **asked: Any) -> Kept:
    return Kept(square, directory, {"kind": "square"} | asked)


def run(cells: list[Square], directory: Path, jobs: int = 1, **options: Any) -> list[Any]:
    return run_cells(cells, kept(directory), jobs, **options)


def calls(directory: Path) -> Counter[str]:
    """How often each cell was computed."""
    return Counter({file.parent.name: len(file.read_text().split()) for file in directory.glob("*/calls")})


def values(found: list[Any]) -> list[Any]:
    """Without times, which differ."""
    return [{key: v for key, v in one.items() if not key.endswith("_seconds")} for one in found]


def expected(cells: list[Square]) -> list[Any]:
    """The naive reference: no file, no process."""
    return [
        {"case": {"number": c.number, "mood": c.mood}, "square": c.number**2, "third": c.number / 3, "nothing": None}
        for c in cells
    ]


# --- order, and each once


@given(numbers=st.lists(st.integers(0, 5), max_size=10), before=st.sets(st.integers(0, 5)))
def test_results_are_in_the_order_asked_and_no_cell_is_computed_twice(tmp_path_factory, numbers, before):
    directory, cells = tmp_path_factory.mktemp("cells"), [Square(number) for number in numbers]
    run([Square(number) for number in before], directory)
    told: list[tuple[int, int]] = []
    found = run(cells, directory, progress=lambda what, done, total: told.append((done, total)))
    assert values(found) == expected(cells)
    assert set(calls(directory).values()) <= {1}
    assert len(calls(directory)) == len(before | set(numbers))
    assert told == [(done, len(set(numbers))) for done in range(len(before & set(numbers)), len(set(numbers)) + 1)]


def test_the_reference_rejects_results_in_order_of_completion_and_cells_that_are_counted_twice(tmp_path):
    cells = [Square(3), Square(1), Square(3)]
    run([Square(1)], tmp_path)
    found = run(cells, tmp_path)
    assert values([found[1], found[0], found[2]]) != expected(cells)  # read back first
    assert values(found[:2]) != expected(cells)
    for cell in cells:  # a runner that does not look what is there
        square(cell, tmp_path / named(cell, {"kind": "square"}), lambda *told: None)
    assert max(calls(tmp_path).values()) > 1


def test_processes_compute_what_one_computes_and_are_heard(tmp_path):
    cells = [Square(number, "slow") for number in (4, 2, 5)]
    heard: list[tuple[str, int, int]] = []
    said: list[str] = []
    together = run(cells, tmp_path / "two", 2, progress=lambda *told: heard.append(told), say=said.append)
    assert values(together) == values(run(cells, tmp_path / "one")) == expected(cells)
    pids = {file.read_text() for file in (tmp_path / "two").glob("*/calls")}
    assert len(pids) > 1
    assert f"{os.getpid()}\n" not in pids
    assert [told for told in heard if told[0] == "cells"] == [("cells", done, 3) for done in range(4)]
    inside = {what for what, _, _ in heard} - {"cells"}
    assert inside
    assert inside <= {cell.title for cell in cells}
    assert said == []


def test_a_worker_has_one_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = run_cells([Square(1), Square(2)], Kept(threads, tmp_path), 2)
    assert [one["threads"] for one in found] == ["1", "1"]


def threads(cell: Square, place: Path, progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    return {"threads": os.environ.get("OMP_NUM_THREADS")}


def test_what_another_has_finished_meanwhile_is_read_back(tmp_path):
    cells = [Square(1), Square(2)]
    found = run(cells, tmp_path, progress=lambda *told: run(cells, tmp_path))  # after the first look, before the work
    assert values(found) == expected(cells)
    assert set(calls(tmp_path).values()) == {1}


def test_dask_computes_what_one_process_computes(tmp_path):
    from distributed import LocalCluster

    cells = [Square(1), Square(2, "raises"), Square(3)]
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc"
    ) as cluster:
        found = run(cells, tmp_path, scheduler=cluster.scheduler_address, failed=Failed)
        with pytest.raises(ValueError, match="no square"):
            run(cells, tmp_path, scheduler=cluster.scheduler_address)
    assert found[1] == Failed("no square of 2")
    assert values([found[0], found[2]]) == expected([cells[0], cells[2]])
    with pytest.raises(ValueError, match="no Dask scheduler answers at nonsense://nowhere"):
        run(cells, tmp_path, scheduler="nonsense://nowhere")


# --- errors


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_is_a_row_and_the_others_go_on(tmp_path, jobs):
    cells = [Square(1), Square(2, "raises"), Square(3)]
    said: list[str] = []
    found = run(cells, tmp_path, jobs, failed=Failed, say=said.append)
    assert found[1] == Failed("no square of 2")
    assert values([found[0], found[2]]) == expected([cells[0], cells[2]])
    (line,) = said
    assert line.endswith(": failed: no square of 2")
    with pytest.raises(ValueError, match="no square"):
        run(cells, tmp_path, jobs)
    assert max(calls(tmp_path).values()) == 2  # tried again, it alone
    assert calls(tmp_path).total() == 4


def test_an_error_that_is_raised_ends_the_cells_at_work(tmp_path):
    with pytest.raises(ValueError, match="no square"):
        run([Square(1, "stuck"), Square(2), Square(3, "raises")], tmp_path, 2)
    until(lambda: not any(map(lives, workers(tmp_path))), 10)
    assert run([Square(2)], tmp_path)
    assert calls(tmp_path).total() == 3


def test_a_process_that_is_killed_costs_its_own_cell_only(tmp_path):
    cells = [Square(1, "slow"), Square(2, "dies"), *map(Square, range(3, 7))]
    found = run(cells, tmp_path, 2, failed=Failed)
    assert isinstance(found[1], Failed)
    assert "its process was killed" in found[1].sentence
    del cells[1], found[1]
    assert values(found) == expected(cells)
    with pytest.raises(RuntimeError, match=r"square2-.*its process was killed"):
        run([Square(2, "dies")], tmp_path, 2)


# --- whose cell it is


@pytest.mark.parametrize("change", [{"kind": "cube"}, {"format": 3}])
def test_experiments_in_one_directory_do_not_read_each_others_cells(tmp_path, change):
    run([Square(1)], tmp_path)
    run_cells([Square(1)], kept(tmp_path, **change))
    run([Square(1, "other")], tmp_path)
    assert set(calls(tmp_path).values()) == {1}
    assert len(calls(tmp_path)) == 3
    assert "threads" in run_cells([Square(1)], Kept(threads, tmp_path))[0]
    assert "square" in run_cells([Square(1)], Kept(square, tmp_path))[0]


def test_a_file_of_another_cell_or_a_damaged_one_is_named_and_never_read(tmp_path):
    run([Square(1), Square(2)], tmp_path)
    one, two = (kept(tmp_path).file(Square(number)) for number in (1, 2))
    whole = two.read_text()
    two.write_text(one.read_text())
    with pytest.raises(ValueError, match=f"{two} holds another cell"):
        run([Square(2)], tmp_path)
    for text in ("{", "3", ""):
        two.write_text(text)
        with pytest.raises(ValueError, match=f"{two}: .*not a finished cell.*: delete it to compute"):
            run([Square(2)], tmp_path)
    old = json.loads(whole)
    del old["case"]  # as some of the first release are
    two.write_text(json.dumps(old))
    assert run([Square(2)], tmp_path)[0]["square"] == 4


def test_two_cells_of_one_name_are_refused(tmp_path):
    class Careless(Kept):
        def name(self, cell: Square) -> str:
            return "square"

    with pytest.raises(ValueError, match="two different cells have the same name square"):
        run_cells([Square(1), Square(2)], Careless(square, tmp_path))
    assert not list(tmp_path.iterdir())


# --- death


SCRIPT = """
import sys
from pathlib import Path
from test_cells import Square, run
run([Square(number, "slow") for number in range(5)], Path(sys.argv[1]), int(sys.argv[2]))
"""


def started(directory: Path, jobs: int) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), *sys.path])
    command = [sys.executable, "-c", SCRIPT, str(directory), str(jobs)]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers(directory: Path) -> list[int]:
    return [int(pid) for file in directory.glob("*/calls") for pid in file.read_text().split()]


def finished(directory: Path) -> int:
    return len(list(directory.glob("*/result.json")))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes live")
@pytest.mark.parametrize(("how", "jobs"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)])
def test_after_any_death_nothing_is_left_behind_and_the_same_call_goes_on(tmp_path, how, jobs):
    cells = [Square(number, "slow") for number in range(5)]
    seed = random.randrange(1000)  # a random moment; the law holds at every one
    process = started(tmp_path, jobs)
    try:
        until(lambda: finished(tmp_path) > seed % 3)
        time.sleep(seed / 5000)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: to the workers too
        else:
            process.kill()
        said = process.communicate(timeout=30)[1].splitlines()
        late = process.returncode == 0  # on a busy machine the signal may find the work done
        assert not late or finished(tmp_path) == len(cells)
        assert ("KeyboardInterrupt" in said) == (how == signal.SIGINT and not late)
    finally:
        process.kill()
    until(lambda: not any(map(lives, workers(tmp_path))), 10)
    before = finished(tmp_path)
    assert 0 < before <= 5, seed
    first = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/result.json")}
    resumed = run(cells, tmp_path)
    assert values(resumed) == expected(cells), seed
    assert all(file.stat().st_mtime_ns == written for file, written in first.items())
    assert calls(tmp_path).total() <= len(cells) + jobs
