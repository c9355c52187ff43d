"""Two writers, a reader beside a writer, full disks: what is there is whole, always."""

import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.run.disk import files
from rankfold.run.disk.files import read_whole, sha256, write_atomically, write_together
from rankfold.run.processes.process import this_process

FORK = multiprocessing.get_context("fork")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10)).eval()


def compressed(keep: float) -> tuple[nn.Module, rf.Plan]:
    plan = rf.plan(network(), f"params={keep}", "truncate", example=torch.zeros(1, 32))
    return rf.apply_(network(), plan), plan


def saving(directory: Path, keep: float, times: int, outcomes) -> None:
    try:
        small, plan = compressed(keep)
        for _ in range(times):
            rf.save(small, plan, directory)
        outcomes.put("saved")
    except Exception as error:
        outcomes.put(f"{type(error).__name__}: {error}")


def beside(target, *args) -> multiprocessing.Process:
    process = FORK.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def test_two_processes_save_into_one_directory_and_one_of_them_is_there_whole(tmp_path):
    outcomes = FORK.Queue()
    writers = [beside(saving, tmp_path, keep, 10, outcomes) for keep in (0.4, 0.6)]
    assert [outcomes.get(timeout=120) for _ in writers] == ["saved", "saved"]
    for writer in writers:
        writer.join(30)
    found = rf.load(tmp_path, network(1))
    small = {keep: compressed(keep)[0].state_dict() for keep in (0.4, 0.6)}
    state = found.model.state_dict()
    assert any(
        state.keys() == ours.keys() and all(torch.equal(ours[name], value) for name, value in state.items())
        for ours in small.values()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "model.safetensors", "plan.json"]


def test_a_reader_beside_a_writer_sees_the_old_or_the_new(tmp_path):
    saves = {keep: compressed(keep) for keep in (0.4, 0.6)}
    rf.save(*saves[0.4], tmp_path)
    outcomes = FORK.Queue()
    writers = [beside(saving, tmp_path, keep, 15, outcomes) for keep in (0.4, 0.6)]
    inputs, known = torch.ones(1, 32), [model(torch.ones(1, 32)) for model, _ in saves.values()]
    reads, seen = 0, set()
    while any(writer.is_alive() for writer in writers) and reads < 500:
        answer = rf.load(tmp_path, network(1)).model(inputs)
        seen |= {number for number, ours in enumerate(known) if torch.equal(answer, ours)}
        assert any(torch.equal(answer, ours) for ours in known)
        reads += 1
    assert [outcomes.get(timeout=120) for _ in writers] == ["saved", "saved"]
    assert reads > 3
    assert seen


def test_a_reader_that_looks_once_would_meet_files_of_two_writers(tmp_path):
    """Why readers look again: the manifest of one save beside a file of the next."""
    old, new = {"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"}
    write_together(tmp_path, old, "manifest", sha256(b"old").encode())
    manifest = (tmp_path / "manifest").read_text()
    write_together(tmp_path, new, "manifest", sha256(b"new").encode())
    assert read_whole(tmp_path, "a", manifest) is None
    assert read_whole(tmp_path, "a", (tmp_path / "manifest").read_text()) == b"new"


def test_temporary_files_of_the_living_stay_and_of_the_dead_go(tmp_path):
    me = this_process()
    mine = tmp_path / f".model.{me.place}-{me.pid}-{me.started}.00000000.tmp"
    dead = tmp_path / f".model.{me.place}-{2**22 + 1}-1.00000000.tmp"
    reborn = tmp_path / f".model.{me.place}-{me.pid}-1.00000000.tmp"
    far, far_old = (tmp_path / f".model.00000000-7-1.{n}0000000.tmp" for n in range(2))
    earlier = tmp_path / ".model.abcd_123"
    waiting = tmp_path / f".model.{'0' * 16}"
    others = [tmp_path / name for name in (".model.backup", ".gitignore", "model.json")]
    for file in (mine, dead, reborn, far, far_old, earlier, waiting, *others):
        file.touch()
    for file in (far_old, earlier):
        os.utime(file, (1.0, 1.0))
    write_atomically(tmp_path / "model", b"new")
    assert {mine, far, waiting, *others} < set(tmp_path.iterdir())
    assert not {dead, reborn, far_old, earlier} & set(tmp_path.iterdir())
    write_together(tmp_path, {"model": b"new"}, "manifest", b"{}")
    assert mine.exists()
    assert not waiting.exists()


def test_identical_saves_give_identical_bytes(tmp_path):
    """Also in another process, where hashes are seeded otherwise."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]; from test_files import compressed; import rankfold as rf; "
        "rf.save(*compressed(.5), sys.argv[1], notes={'a': 1})"
    )
    rf.save(*compressed(0.5), tmp_path / "a", notes={"a": 1})
    command = [sys.executable, "-c", code, str(tmp_path / "b"), str(Path(__file__).parent)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"})
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert contents[0] == contents[1]


def test_a_full_disk_leaves_the_good_directory_and_names_the_file(tmp_path, monkeypatch):
    old = compressed(0.6)
    rf.save(*old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*plan\.json'"):
        rf.save(*compressed(0.4), tmp_path)
    monkeypatch.undo()
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_disk_that_is_full_indeed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        good = disk / "good"
        rf.save(*compressed(0.6), good)
        before = {path.name: path.read_bytes() for path in good.iterdir()}
        (disk / "filler").write_bytes(bytes(100_000 - sum(map(len, before.values())) - 20_000))
        big = network(1)
        plan = rf.plan(big, "params=1", "truncate", example=torch.zeros(1, 32))
        with pytest.raises(OSError, match=rf"No space left on device: '{good}/"):
            rf.save(nn.Sequential(*big, nn.Linear(10, 5000)), plan, good)
        assert before == {path.name: path.read_bytes() for path in good.iterdir()}
        rf.load(good, network())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_writer_that_dies_between_two_renames_is_made_good_by_the_next(tmp_path, monkeypatch):
    write_together(tmp_path, {"a": b"one", "b": b"one"}, "manifest", b"1")
    real = os.replace

    def dying(source, target):
        if Path(target).name == "b":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        write_together(tmp_path, {"a": b"two", "b": b"two"}, "manifest", b"2")
    monkeypatch.undo()
    assert [read_whole(tmp_path, name, sha256(b"two")) for name in "ab"] == [b"two", b"two"]
    write_together(tmp_path, {"a": b"three", "b": b"three"}, "manifest", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "manifest"]


def test_a_reader_gives_up_on_what_stays_damaged_and_waits_for_what_changes(tmp_path):
    manifest, looks = tmp_path / "manifest", []
    manifest.write_text("0")

    def damaged() -> None:
        looks.append(time.monotonic())
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        files.undisturbed(manifest, damaged, ValueError)
    assert len(looks) == files._LOOKS + 1

    def changing() -> str:
        looks.append(0.0)
        write_atomically(manifest, str(len(looks)).encode())
        if len(looks) < 20:
            raise ValueError("of two writers")
        return "whole"

    looks.clear()
    assert files.undisturbed(manifest, changing, ValueError) == "whole"
    assert len(looks) == 20


def test_this_process_is_alive_and_known_by_its_start():
    me = this_process()
    assert me.alive
    assert replace(me, started="0").alive is False
    assert replace(me, place="another").alive is None
    assert replace(me, pid=2**40).alive is False
