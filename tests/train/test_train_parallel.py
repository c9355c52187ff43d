"""Two gloo processes on this machine compute what one computes, and fail together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import RECIPE, at_low_rank, by_objective, figures, fitted, network, state

from rankfold.compress.planning.plan import Plan
from rankfold.pipeline import train
from rankfold.pipeline.trainings.config import parse
from rankfold.run.processes.team import Team
from rankfold.train import fit
from rankfold.zoo import load_data

CONFIG = "model: two_processes:network\ndata: digits\ndepth: 2\nepochs: 2\nbatch_size: 64\nrecord_spectra: true\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What both processes found, what they printed, and where."""
    directory = tmp_path_factory.mktemp("pair")
    (directory / "run.yaml").write_text(CONFIG + f"out: {directory / 'command'}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parents[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(here / "two_processes.py"), str(directory)],
            env=os.environ | common | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=here,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], printed
    return directory, [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)], printed


@pytest.fixture(scope="module")
def alone():
    data, model = load_data("digits"), network()
    history = fit(model, data.train, data.validation, RECIPE)
    return {"state": state(model), "figures": figures(history)}


@pytest.mark.parametrize("kind", ["segmentation", "teacher"])
def test_positions_that_count_are_summed_over_the_processes(pair, kind):
    _, found, _ = pair
    single = by_objective(kind)
    assert found[0][kind] == found[1][kind]
    assert difference(found[0][kind]["state"], single["state"]) < 1e-5
    assert found[0][kind]["epoch"] == pytest.approx(single["epoch"], rel=1e-4)
    assert ("train_mean_iou" if kind == "segmentation" else "train_change") in single["epoch"]


@pytest.mark.parametrize("kind", ["dlrt", "factors", "way"])
def test_layers_of_low_rank_train_together_as_alone(pair, kind):
    """Their parameters change places and shapes, which DistributedDataParallel does not follow."""
    _, found, _ = pair
    single = at_low_rank(kind)
    assert found[0][kind] == found[1][kind]
    assert found[0][kind]["ranks"] == single["ranks"]
    assert max(single["ranks"]) < 32
    assert found[0][kind]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert difference(found[0][kind]["state"], single["state"]) < 1e-3


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    return max(float((torch.tensor(a[name]) - torch.tensor(b[name])).abs().max()) for name in a)


def test_two_processes_compute_what_one_computes(pair, alone):
    _, found, _ = pair
    assert found[0]["together"] == found[1]["together"]
    assert difference(found[0]["together"]["state"], alone["state"]) < 1e-5
    for mine, single in zip(found[0]["together"]["figures"], alone["figures"], strict=True):
        assert mine == pytest.approx(single, rel=1e-5)


def test_the_comparison_rejects_processes_that_take_the_same_rows(pair, alone):
    _, found, _ = pair
    assert difference(found[0]["wrong"], alone["state"]) > 1e-3


def test_errors_end_both_processes_and_name_the_one(pair):
    _, found, _ = pair
    assert found[0]["failing"] == "TrainingError: process 2 of 2: the disk of this machine is gone"
    assert found[1]["failing"] == "OSError: the disk of this machine is gone"
    for process in found:
        assert process["indivisible"] == (
            "TrainingError: batch_size 63 cannot be shared equally by 2 processes: give 62 or another multiple of 2"
        )
    assert found[0]["stopped"] == "ValueError: stopped here"
    assert found[1]["stopped"] == "TrainingError: process 1 of 2: stopped here"


def test_the_first_process_alone_reports_and_both_resume(pair, alone):
    _, found, _ = pair
    assert found[0]["events"] > 1
    assert found[1]["events"] == 0
    for process in found:
        assert process["resumed"]["from"] == 1
        assert process["resumed"]["state"] == found[0]["together"]["state"]


def test_one_process_takes_up_what_two_have_begun(pair, alone):
    directory, _, _ = pair
    data, model = load_data("digits"), network(seed=7)
    history = fit(model, data.train, data.validation, RECIPE, directory=directory / "half")
    assert history.resumed_from == 1
    assert difference(state(model), alone["state"]) < 1e-5


def test_two_processes_fit_layers_as_one_does(pair):
    directory, _, _ = pair
    alone = fitted(distributed=False)
    for rank in range(2):
        shared = Plan.load(directory / f"plan-{rank}.json")
        assert [(e.form, e.rank) for e in shared.entries] == [(e.form, e.rank) for e in alone.entries]
        for entry in alone.changed:
            assert shared[entry.site].predicted_error == pytest.approx(entry.predicted_error, abs=1e-10)
            theirs, ours = (made.factors[entry.site].factors for made in (shared, alone))
            for a, b in zip((*theirs.parts, theirs.shift), (*ours.parts, ours.shift), strict=True):
                torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_the_command_trains_in_two_processes_and_one_talks(pair, tmp_path):
    directory, _, printed = pair
    (out, talk), (silent_out, silent_talk) = printed
    assert (silent_out, silent_talk) == ("", "")
    assert "epoch 2 of 2" in talk
    result = json.loads(out)
    assert result["processes"] == 2
    single = train(parse({"model": "two_processes:network", "data": "digits", "depth": 2, "epochs": 2,
                          "batch_size": 64, "out": str(tmp_path / "run")}))  # fmt: skip
    assert result["validation_accuracy"] == pytest.approx(single.validation_accuracy, abs=0.01)
    pairs = [load_file(place / "model.safetensors") for place in (directory / "command", tmp_path / "run")]
    for name, value in pairs[0].items():
        torch.testing.assert_close(value, pairs[1][name], rtol=1e-3, atol=1e-4)


def test_slices_are_the_batch_and_small_batches_are_refused():
    batch = (torch.arange(10).view(5, 2), torch.arange(5), "a name")
    parts = [Team(rank, 3).share(batch) for rank in range(3)]
    assert torch.equal(torch.cat([part[0] for part in parts]), batch[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), batch[1])
    assert all(part[2] == "a name" for part in parts)
    with pytest.raises(ValueError, match="a batch of 2 cannot be shared by 3"):
        Team(0, 3).share((torch.zeros(2, 1), torch.zeros(2)))
    with pytest.raises(ValueError, match="give 3 or another multiple of 3"):
        Team(0, 3).check(2)
