"""Quick forms of the experiments of C-DLN on matrices: they run, and say what they found."""

import math
from pathlib import Path

import pytest

from rankfold.papers import reproduce
from rankfold.papers.cdln.matrices import _compared
from rankfold.papers.cdln.trainings import COMPLETION, Trained
from rankfold.papers.request import Request

NAMES = (
    "factorization", "completion", "sensing", "sensing-sizes", "incremental", "incremental-sensing", "alpha", "rate",
    "start", "depth", "svd", "movielens", "movielens-alpha", "updates",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_quick_forms_write_tables_and_remarks(name, tmp_path):
    outcome = reproduce(f"cdln-{name}", tmp_path, Request(quick=True))
    assert len(outcome.table) >= 2
    assert outcome.remarks
    assert (tmp_path / "result.md").read_text(encoding="utf-8").startswith("# C-DLN")
    for figure in outcome.figures:
        assert (tmp_path / f"{figure}.svg").stat().st_size > 0


def test_a_network_that_diverges_is_never_called_no_worse():
    wide = Trained([0, 50], [0.0, 1.0], [1.0, 0.005])
    (told,) = _compared("r=5", COMPLETION, {"wide": wide, "compressed": Trained([0, 50], [0.0, 0.1], [1.0, math.nan])})
    assert "no worse at 1 of 2 looks (paper: all); the compressed one diverged; of the two, the wide" in told
    (told,) = _compared("r=5", COMPLETION, {"wide": wide, "compressed": Trained([0, 50], [0.0, 0.1], [1.0, 0.006])})
    assert "by 20.0% at the worst of the others; error 0.01 in 1.0 times fewer iterations and 10.0 times less" in told


def test_what_stands_for_the_papers_data_is_said(tmp_path):
    outcome = reproduce("cdln-movielens-alpha", tmp_path, Request(quick=True))
    assert "planted ratings" in outcome.title
    assert outcome.title.endswith("(quick form)")
    assert "nothing about the claim" in outcome.remarks[-1]
    assert outcome.about["request"]["quick"]


def test_small_ratings_are_told_with_their_own_rank(tmp_path):
    assert "planted ratings at rank 2 " in reproduce("cdln-movielens", tmp_path, Request(quick=True)).title


def test_quick_is_on_its_own_data():
    with pytest.raises(ValueError, match="quick is on the bundled digits: leave quick or data 'cifar100' out"):
        Request(quick=True, data="cifar100")


@pytest.mark.parametrize(
    ("name", "request_", "told"),
    [
        ("collapse-warmup", Request(quick=True, decays=(1e-3, 1e-4)), "one weight decay"),
        ("lorita-beyond", Request(quick=True, weights=Path("w.safetensors"), epochs=3), "no option epochs"),
        ("recovery-layers", Request(quick=True, precision="auto"), "no option precision: its options are"),
        ("recovery-layers", Request(quick=True, depths=(1, 2)), "no option depths: its options are"),
        ("recovery-layers", Request(quick=True, setting="relaxed"), "no option setting: its options are"),
        ("adaptation-table", Request(quick=True, trials=10), "4 settings of each method: trials are at most so many"),
        ("nrc-figure-5-full", Request(quick=True, models=("resnet20",)), "nrc-figure-5-full has no option models"),
        ("cdln-movielens", Request(quick=True, seeds=(0, 5)), "5 splits: seeds from 0 to 4, got 5"),
        ("lorita-table-2", Request(data="cifar100"), "lorita-table-2 has no option data"),
        ("cdln-rate", Request(quick=True, epochs=3), "cdln-rate has no option epochs: its options are jobs, quick"),
        ("cdln-update", Request(), "did you mean cdln-updates"),
    ],
)
def test_what_would_be_ignored_is_refused(name, request_, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        reproduce(name, tmp_path, request_)
