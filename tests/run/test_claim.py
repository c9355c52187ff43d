"""One job in a directory: the second is refused while the first lives, and takes over when it is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rankfold.run import claim
from rankfold.run.claim import NAME, ClaimError, claimed, holder
from rankfold.run.processes.process import Process, this_process

HOLD = """
import sys, time
from rankfold.run.claim import claimed
with claimed(sys.argv[1], what="long work"):
    print("held", flush=True)
    time.sleep(60)
"""


def left_behind(directory: Path, process: Process, age: float = 0.0) -> Path:
    """The claim of a process that did not end in order, last touched ``age`` seconds ago."""
    directory.mkdir(exist_ok=True)
    file = directory / NAME
    file.write_text(json.dumps({"process": asdict(process), "since": "long ago", "what": "a plan", "mark": "m"}))
    os.utime(file, (time.time() - age,) * 2)
    return file


def elsewhere() -> Process:
    return replace(this_process(), host="node7", place="00000000")


def test_a_second_process_is_refused_while_the_first_lives_and_takes_over_when_it_is_killed(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(
            ClaimError, match=r"run is in use by process \d+ on .* \(long work\) since 20.* UTC: wait"
        ) as said:
            claimed(tmp_path / "run").__enter__()
        assert str(first.pid) in str(said.value)
        assert "\n" not in str(said.value)
        first.send_signal(signal.SIGSTOP)  # it still has the directory
        with pytest.raises(ClaimError):
            claimed(tmp_path / "run").__enter__()
        first.kill()  # and is not waited for: nobody may have done that
        time.sleep(0.2)
        with claimed(tmp_path / "run"):
            assert holder(tmp_path / "run").process == this_process()
    finally:
        first.kill()
        first.communicate()
    assert not (tmp_path / "run" / NAME).exists()


def test_a_number_that_was_given_to_another_process_does_not_count(tmp_path):
    left_behind(tmp_path, replace(this_process(), started="1"))
    with claimed(tmp_path):
        assert holder(tmp_path).process == this_process()


def test_a_holder_on_another_machine_lives_by_its_touches(tmp_path):
    left_behind(tmp_path, elsewhere(), age=30)
    with pytest.raises(ClaimError, match="on node7"):
        claimed(tmp_path).__enter__()
    left_behind(tmp_path, elsewhere(), age=90)
    with claimed(tmp_path):
        assert holder(tmp_path).process == this_process()
    file = left_behind(tmp_path, elsewhere())
    with pytest.raises(ClaimError):
        claimed(tmp_path, now=lambda: file.stat().st_mtime + 59).__enter__()
    with claimed(tmp_path, now=lambda: file.stat().st_mtime + 61):
        pass


def test_a_live_process_of_this_machine_holds_however_old_its_touch(tmp_path):
    """A machine may have slept."""
    left_behind(tmp_path, this_process(), age=1e6)
    with pytest.raises(ClaimError):
        claimed(tmp_path).__enter__()


def test_the_claim_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "BEAT", 0.02)
    with claimed(tmp_path):
        os.utime(tmp_path / NAME, (1.0, 1.0))
        until = time.monotonic() + 20
        while (tmp_path / NAME).stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 2


@pytest.mark.parametrize("links", [True, False])
def test_of_many_who_find_a_dead_one_exactly_one_takes_over(tmp_path, monkeypatch, links):
    if not links:  # a file system without hard links
        monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError(1, "not permitted")))
    gone = replace(this_process(), pid=2**22 + 1)
    lock, ready, inside, counts = threading.Lock(), threading.Barrier(8), [], []

    def work() -> bool:
        ready.wait()
        try:
            with claimed(tmp_path):
                with lock:
                    inside.append(1)
                    counts.append(len(inside))
                time.sleep(0.005)
                with lock:
                    inside.pop()
        except ClaimError:
            return False
        return True

    for _ in range(20):
        left_behind(tmp_path, gone)
        with ThreadPoolExecutor(8) as pool:
            done = [future.result() for future in [pool.submit(work) for _ in range(8)]]
        assert any(done)
        assert set(counts) == {1}
        assert not list(tmp_path.iterdir())


def test_a_lock_that_lets_everybody_in_is_seen(tmp_path, monkeypatch):
    """The check above rejects it."""
    monkeypatch.setattr(Process, "alive", property(lambda self: False))
    with claimed(tmp_path), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: claimed(tmp_path).__enter__()).exception() is None


def test_the_same_thread_may_enter_again_and_another_one_waits(tmp_path):
    entered = threading.Event()

    def other() -> None:
        with claimed(tmp_path, wait=20):
            entered.set()

    with claimed(tmp_path):
        with claimed(tmp_path):
            pass
        assert (tmp_path / NAME).exists()
        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.1)
    thread.join(20)
    assert entered.is_set()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b'{"process": 3}', b'{"process": {"pid": "x"}}', b"\xff"]
)
def test_a_claim_that_cannot_be_read_counts_while_it_is_young(tmp_path, content):
    file = tmp_path / NAME
    file.write_bytes(content)
    with pytest.raises(ClaimError, match="unreadable claim"):
        claimed(tmp_path).__enter__()
    os.utime(file, (1.0, 1.0))
    with claimed(tmp_path):
        pass


def test_nothing_is_left_where_nothing_was_done(tmp_path):
    with claimed(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a" / "b").exists()
    with claimed(tmp_path / "c"):
        (tmp_path / "c" / "work").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["work"]
