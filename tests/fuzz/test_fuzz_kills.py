"""Jobs killed at any moment: what was good stays good, nothing of the dead is left, and the same call ends alike.

A short run by default; ``RANKFOLD_KILLS=50`` kills so often, ``RANKFOLD_FUZZ_SEED`` draws other moments.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import time
import warnings
from pathlib import Path

import pytest
import torch
from jobs import JOBS, decoder, network, run, sequences
from torch import nn

import rankfold as rf
from rankfold.store.manifest import Unfinished

KILLS = int(os.environ.get("RANKFOLD_KILLS", "4"))
SEED = int(os.environ.get("RANKFOLD_FUZZ_SEED", "0"))
TEMPORARY = re.compile(r"\..+\.tmp|\..+\.[0-9a-f]{16}|\.rankfold-.*")
FORKED = multiprocessing.get_context("forkserver")
X = torch.randn(7, 16, generator=torch.Generator().manual_seed(5))


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        if hasattr(model, "config"):
            return model.eval()(**sequences(4, 3)[0]).logits
        return model.eval()(X)


def loaded(name: str, place: Path) -> nn.Module:
    return rf.load(place, None if name == "streaming" else network()).model


@pytest.fixture(scope="module", autouse=True)
def _reachable():
    """The server that jobs are forked from imports them once, where it finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        FORKED.set_forkserver_preload(["jobs"])
        server = FORKED.Process(target=os.getpid)  # it starts now, and not within the time of a job
        server.start()
        ended(server)
        yield


def started(name: str, place: Path) -> multiprocessing.process.BaseProcess:
    process = FORKED.Process(target=run, args=(name, str(place)))
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    assert process.exitcode == 0


@pytest.mark.timeout(0 if KILLS > 10 else 300)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_killed_at_any_moment_goes_on(name, tmp_path):
    draw, place = random.Random(f"{SEED} {name}"), tmp_path / "killed"
    if name == "streaming":
        decoder(tmp_path / "dense")
    begun = time.monotonic()
    ended(started(name, tmp_path / "neither read nor copied"))
    long = time.monotonic() - begun
    share, killed = -(-KILLS // len(JOBS)), 0
    for _ in range(5 * share):
        process = started(name, place)
        process.join(draw.uniform(0, long))
        alive = process.is_alive()
        killed += alive
        process.kill()
        process.join()
        if (place / "manifest.json").exists():  # whatever the moment: one whole network, the old one or the new one
            with warnings.catch_warnings(action="ignore", category=Unfinished):  # of a job that was killed
                assert outputs(loaded(name, place)).isfinite().all()
        if killed == share:
            break
        if not alive:  # it came to its end: another one from the start
            shutil.rmtree(place)
    ended(started(name, place))
    assert killed > 0
    expected, found = (outputs(again(name, at)) for at in (tmp_path / "neither read nor copied", place))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    left = [path.name for path in place.rglob("*") if TEMPORARY.fullmatch(path.name)]
    assert left == []


def again(name: str, place: Path) -> nn.Module:
    """What the finished job left: read back by the same call, or from the directory."""
    return loaded(name, place) if name == "saving" else JOBS[name](place)
