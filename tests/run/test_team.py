"""Processes of one run: a dead peer ends the others in one line, workers do not outlive the process they work for."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rankfold.run.processes.peers import GONE, MARK
from rankfold.run.processes.team import Team, TeamError, joined

LIMIT = 60.0  # seconds in which the others end

TRAIN = """
import sys
from rankfold.run.processes import peers
peers.MARK, peers.GONE = 0.5, float(sys.argv.pop(1))
from rankfold.cli.main import main
main()
"""
CONFIG = "model: two_processes:network\ndata: digits\nepochs: 100000\nbatch_size: 64\nrecord_spectra: false\n"


def until(ready, limit: float = 90.0) -> bool:
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if ready():
            return True
        time.sleep(0.05)
    return False


def pair(directory: Path, gone: float) -> list[subprocess.Popen]:
    """Two processes that train for a long time, once the first epoch is done."""
    (directory / "run.yaml").write_text(CONFIG + f"out: {directory / 'run'}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).parents[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(gone), "train", str(directory / "run.yaml")],
            env=os.environ | common | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            cwd=tests,
        )
        for rank in range(2)
    ]
    if not until(lambda: (directory / "run" / "checkpoint.json").exists()):
        for process in running:
            process.kill()
        pytest.fail(str([process.communicate()[1] for process in running]))
    return running


@pytest.mark.parametrize(("rank", "how"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_dead_or_silent_peer_ends_the_other_within_a_minute_in_one_line(tmp_path, rank, how):
    """A stopped process stands for a machine that is gone: no connection is closed. Its patience is shortened here."""
    running = pair(tmp_path, GONE if how == signal.SIGKILL else 5.0)
    try:
        running[rank].send_signal(how)
        _, said = running[1 - rank].communicate(timeout=LIMIT)
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert running[1 - rank].returncode == 1
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert "gone" in errors[0]
    assert "continues" in errors[0]


def test_the_patience_with_a_silent_peer_is_below_a_minute():
    assert GONE + 2 * MARK < LIMIT


def test_a_lost_connection_is_told_and_other_errors_are_not_taken_for_one(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    lost = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(TeamError, match="another of the 2 processes is gone"), joined(torch.device("cpu")):
        raise lost
    with pytest.raises(RuntimeError, match="mat1 and mat2"), joined(torch.device("cpu")):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_alone_there_is_nothing_to_agree_on():
    team = Team()
    assert team.summed(1.0, 2.0) == [1.0, 2.0]
    assert team.shared(lambda: "x") == "x"
    with team.agreed():
        pass


def alive(mark: str) -> list[int]:
    """Running processes that carry ``mark`` in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            carries = mark.encode() in (place / "environ").read_bytes()
            if carries and (place / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z":
                found.append(int(place.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are counted in /proc")
def test_a_sweep_whose_parent_is_killed_leaves_no_worker_behind(tmp_path):
    grid = CONFIG + f"out: {tmp_path / 'sweep'}\njobs: 2\ngrid: {{seed: [0, 1]}}\n"
    (tmp_path / "grid.yaml").write_text(grid)
    mark = f"RANKFOLD_TEST_MARK={os.getpid()}-{time.monotonic_ns()}"
    name, _, value = mark.partition("=")
    parent = subprocess.Popen(
        [sys.executable, "-m", "rankfold", "sweep", str(tmp_path / "grid.yaml")],
        env=os.environ | {name: value, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[1],
    )
    try:
        assert until(lambda: len(list((tmp_path / "sweep").glob("*/checkpoint.json"))) == 2)
        assert len(alive(mark)) >= 3  # the parent and two workers
        parent.kill()
        parent.wait()
        assert until(lambda: not alive(mark), limit=30)
    finally:
        parent.kill()
        for pid in alive(mark):
            os.kill(pid, signal.SIGKILL)
