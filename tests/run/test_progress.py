"""Progress is shown in a terminal where nobody with other settings, and nowhere else."""

import io
import sys

import pytest
import torch
from torch import nn

import rankfold as rf
from rankfold.objectives import Evaluation, Figure
from rankfold.run import progress
from rankfold.run.progress import Talk, Tell, showing, showing_epochs, shown
from rankfold.train import Epoch, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def opened(monkeypatch):
    """Puts a terminal in the place of standard error, once the test itself runs: pytest sets its own before."""

    def on() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.delenv("RANKFOLD_PROGRESS", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        return screen

    return on


def planned(**more) -> rf.Plan:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    return rf.plan(network, "params=0.6", data=torch.ones(16, 8), **more)


def test_python_in_a_terminal_shows_a_bar_that_is_gone_in_the_end(opened):
    terminal = opened()
    planned()
    assert "calibrating" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is cleared


def test_whoever_asks_otherwise_has_it_otherwise(opened, monkeypatch):
    terminal = opened()
    calls = []
    planned(progress=lambda *now: calls.append(now))
    assert ("calibrating", 16, 2048) in calls
    monkeypatch.setenv("RANKFOLD_PROGRESS", "0")
    planned()
    monkeypatch.setenv("RANKFOLD_PROGRESS", "")
    monkeypatch.setenv("RANK", "1")  # the second process of torchrun
    planned()
    assert terminal.getvalue() == ""


def test_nothing_is_said_where_there_is_no_terminal(capsys):
    planned()
    assert capsys.readouterr() == ("", "")


def test_lines_where_they_are_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("RANKFOLD_PROGRESS", "1")
    monkeypatch.setattr(progress, "_EVERY", -1.0)
    showing(work)()
    assert capsys.readouterr().err == "working: 1 of 3, about 0 s left\nworking: 2 of 3, about 0 s left\n"


def test_lines_tell_the_time_left_once_the_first_part_is_done(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    talk = progress.Talk()
    for done in (0, 1, 2):
        talk.progress("measuring", done, 100)
    assert (
        capsys.readouterr().err
        == "measuring: 1 of 100, about 33 min 0 s left\nmeasuring: 2 of 100, about 32 min 40 s left\n"
    )


def work(*, progress=None) -> None:
    if progress is not None:
        for done in range(4):
            progress("working", done, 3)


def test_what_is_called_inside_does_not_draw_over_it(opened):
    terminal = opened()
    inner = showing(work)

    @showing
    def outer(*, progress=None) -> bool:
        before = terminal.getvalue()
        inner()
        return terminal.getvalue() == before

    assert outer()
    assert outer(progress=lambda *now: None)
    with shown(Tell()):
        assert outer()
    inner()
    assert "working" in terminal.getvalue()


def test_the_bar_goes_when_the_work_fails(opened):
    terminal = opened()

    @showing
    def failing(*, progress=None) -> None:
        progress("working", 1, 3)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert terminal.getvalue().endswith("\x1b[2K")
    assert progress.wanted()


def test_a_training_tells_batches_and_epochs():
    calls, said = [], []
    tell = Tell(lambda *now: calls.append(now), said.append).training("fine-tuning")
    tell(Progress(2, 3, 1, 10, 0.5))
    tell(
        Progress(
            2,
            3,
            10,
            10,
            0.5,
            Epoch(2, 0.25, (), Evaluation((Figure("accuracy", 0.875, True, "fraction"),), 0.3, 8), 0.1, 1.5),
        )
    )
    assert calls == [("fine-tuning", 11, 30), ("fine-tuning", 20, 30)]
    assert said == ["  epoch 2 of 3: loss 0.2500, validation accuracy 87.50 %, 1.5 s"]


def test_training_shows_its_batches(opened):
    terminal = opened()

    @showing_epochs("training")
    def fit(*, progress=None) -> None:
        progress(Progress(1, 2, 1, 4, 0.5))

    fit()
    assert "training" in terminal.getvalue()


def test_a_talk_can_be_given_as_progress(capsys):
    with Talk() as talk:
        planned(progress=talk.progress)
        talk.say("done")
    assert capsys.readouterr().err == "done\n"


def test_a_word_that_is_not_taken_is_refused_in_the_name_of_the_function():
    with pytest.raises(TypeError, match=r"^work\(\) got an unexpected keyword argument 'samples'"):
        showing(work)(samples=3)
