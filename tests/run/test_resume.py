"""Directories of runs: two jobs, another request, a plan that was changed while nobody looked."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rankfold import papers, pipeline
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Profile
from rankfold.pipeline import Settings, Tell, compress
from rankfold.pipeline.compression.outcome import page
from rankfold.pipeline.trainings.config import parse
from rankfold.run.claim import ClaimError, claimed
from rankfold.store import StoreError, load
from rankfold.train import Recipe, TrainingError, fit

SETTINGS = Settings(curve=False, samples=64, method="truncate", slices=False)
BUDGET = "params=0.6"


class Data:
    def __init__(self) -> None:
        x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
        parts = [TensorDataset(part, torch.arange(len(part)) % 4) for part in x.split((128, 64, 64))]
        self.train, self.validation, self.test = parts


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


def interrupted(directory: Path) -> Path:
    """A run that was stopped when its plan was there; the file of the plan."""

    def stop(sentence: str) -> None:
        if sentence.startswith("plan: "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=directory, tell=Tell(say=stop))
    return directory / "run" / "plan.json"


def elsewhere(job) -> BaseException | None:
    """What ``job`` raises in another thread, which is another job."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(job).exception()


def test_a_second_job_in_a_directory_is_refused_while_the_first_is_at_work(tmp_path):
    seen = []

    def look(sentence: str) -> None:
        if not seen:
            seen.append(elsewhere(lambda: compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)))

    first = compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path, tell=Tell(say=look))
    assert isinstance(seen[0], ClaimError)
    assert "(compress)" in str(seen[0])
    assert "\n" not in str(seen[0])
    again = compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    assert again.before == first.before
    assert not list(tmp_path.rglob(".*"))


def test_trainings_sweeps_and_reproductions_hold_their_directories(tmp_path):
    config = parse({"model": "digits-cnn", "data": "digits", "epochs": 1, "out": str(tmp_path)})
    data, recipe = Data(), Recipe(epochs=1, batch_size=32)
    grid = pipeline.parse_sweep({"model": "digits-cnn", "epochs": 1, "grid": {"seed": [0]}, "out": str(tmp_path)})
    jobs = {
        "train": lambda: pipeline.train(config),
        "fit": lambda: fit(network(), data.train, None, recipe, directory=tmp_path),
        "sweep": lambda: pipeline.sweep(grid),
        "reproduce": lambda: papers.reproduce("lorita-table-1a", tmp_path),
    }
    with claimed(tmp_path, what="another job"):
        for job in jobs.values():
            refused = elsewhere(job)
            assert isinstance(refused, ClaimError | TrainingError), refused
            assert "in use by process" in str(refused)
            assert "(another job)" in str(refused)
    fit(network(), data.train, None, recipe, directory=tmp_path / "free")
    assert not list((tmp_path / "free").glob(".*"))


def test_the_command_plan_holds_its_partial_directory(tmp_path, monkeypatch):
    from commands import failed

    from rankfold.zoo import model

    monkeypatch.setenv("COLUMNS", "200")
    torch.save(model("digits-cnn").state_dict(), tmp_path / "w.pt")
    command = ("plan", "digits-cnn", "--weights", tmp_path / "w.pt", "--budget", "params=0.5", "--method", "sequential")
    with claimed(tmp_path / "plan.json.partial", what="another plan"):
        said: list[str] = []
        assert elsewhere(lambda: said.append(failed(*command, "-o", tmp_path / "plan.json"))) is None
    assert "in use by process" in said[0]
    assert "(another plan)" in said[0]
    assert not list(tmp_path.glob("plan.json*"))


def test_a_finished_training_is_read_back_where_nothing_can_be_written(tmp_path, monkeypatch):
    data, recipe = Data(), Recipe(epochs=1, batch_size=32)
    fit(network(), data.train, None, recipe, directory=tmp_path)
    real = os.open

    def refused(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)
    assert fit(network(), data.train, None, recipe, directory=tmp_path).resumed_from == 1


def test_a_finished_run_is_read_back_although_somebody_else_reads_it_too(tmp_path):
    done = compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    with claimed(tmp_path):
        assert elsewhere(lambda: compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)) is None
    assert done.before == compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path).before


def test_a_plan_that_was_left_alone_is_taken_up_as_it_is(tmp_path, monkeypatch):
    interrupted(tmp_path)
    monkeypatch.setattr(Profile, "plan", None)
    monkeypatch.setattr(page, "offers", lambda known, plan, sought: [])  # the report asks for plans of other budgets
    said = []
    compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path, tell=Tell(say=said.append))
    assert not any("changed" in sentence for sentence in said[:2])


def test_a_plan_that_was_edited_within_its_budget_is_taken_and_told(tmp_path):
    file = interrupted(tmp_path)
    made = Plan.load(file)
    entry = made.changed[0]
    made.with_entries(tuple(replace(e, rank=1) if e is entry else e for e in made.entries)).save(file)
    said = []
    done = compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path, tell=Tell(say=said.append))
    (sentence,) = [sentence for sentence in said if "was changed since it was made" in sentence]
    share = done.compressed.params / done.before.params
    assert f"{100 * share:.1f}\N{NO-BREAK SPACE}% of the params" in sentence
    assert done.plan.after.params == done.compressed.params
    assert done.plan[entry.site].rank == 1


@pytest.mark.parametrize("hashed", [True, False])
def test_a_plan_that_was_edited_beyond_its_budget_is_refused(tmp_path, hashed):
    """Without its hash too, as the first release left it."""
    file = interrupted(tmp_path)
    if not hashed:
        file.with_name("plan.json.sha256").unlink()
    made = Plan.load(file)
    entry = made.changed[0]
    made.with_entries(tuple(replace(e, rank=14) if e is entry else e for e in made.entries)).save(file)
    with pytest.raises(StoreError, match=r"plan\.json was changed .*keeps \d+.*, where .*0\.6.*--restart") as said:
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    assert "\n" not in str(said.value)
    compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path, restart=True)


def test_a_plan_of_another_budget_does_not_slip_in(tmp_path):
    file = interrupted(tmp_path)
    values = json.loads(file.read_text())
    values["budgets"][0]["keep"] = 0.9
    file.write_text(json.dumps(values))
    with pytest.raises(StoreError, match="now names another method or budget"):
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)


@pytest.mark.parametrize("content", ["[" * 200_000, "{}", "[]", '{"seconds": "x"}'])
def test_a_result_of_another_kind_is_refused_in_one_line(tmp_path, content):
    compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    good = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(StoreError, match=r"result\.json: .*--restart") as said:
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    assert "\n" not in str(said.value)
    values = json.loads(good)
    values["scores"]["before"]["loss"] = "small"
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(StoreError, match=r"result\.json: damaged \(loss: "):
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)
    (tmp_path / "run" / "request.json").write_text(content)
    with pytest.raises(StoreError, match=r"request\.json: |in a format that this version does not know"):
        compress(network(), Data(), BUDGET, settings=SETTINGS, directory=tmp_path)


def test_a_plan_in_a_directory_holds_it_while_something_is_kept_there(tmp_path):
    import rankfold as rf

    data, seen = [torch.randn(32, 16) for _ in range(4)], []

    def look(what: str, done: int, total: int) -> None:
        if not seen:
            seen.append(elsewhere(lambda: rf.plan(network(), BUDGET, "sequential", data, directory=tmp_path / "kept")))

    rf.plan(network(), BUDGET, "sequential", data, directory=tmp_path / "kept", progress=look)
    assert isinstance(seen[0], ClaimError)
    assert "(plan)" in str(seen[0])
    assert rf.plan(network(), BUDGET, "sequential", data, directory=tmp_path / "kept").changed  # and is free again
    with claimed(tmp_path / "other", what="another job"):  # nothing is kept by this method
        assert elsewhere(lambda: rf.plan(network(), BUDGET, "project", data, directory=tmp_path / "other")) is None


@pytest.mark.parametrize("written", [1, 3, None])
def test_a_run_of_another_format_is_not_taken_for_this_one(tmp_path, written):
    """The first release noted the number of samples and their type: figures of other data would pass for these."""
    asked = (network(), Data(), BUDGET)
    made = compress(*asked, settings=SETTINGS, directory=tmp_path)
    file = tmp_path / "run" / "request.json"
    values = json.loads(file.read_text()) | {"format": written}
    values["data"] = {
        "train": "128 of TensorDataset",
        "validation": "64 of TensorDataset",
        "test": "64 of TensorDataset",
    }
    file.write_text(json.dumps(values))
    with pytest.raises(StoreError) as caught:
        compress(*asked, settings=SETTINGS, directory=tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert ("of the first version" in said) == (written == 1)
    assert f"rankfold evaluate {tmp_path} measures its network" in said
    assert load(tmp_path, network()).plan == made.plan  # as it says
    assert compress(*asked, settings=SETTINGS, directory=tmp_path, restart=True).before.score == made.before.score
