"""Quick forms of the experiments of C-DLN on matrices: they run, and say what they found."""

import pytest

from rankfold.papers import reproduce
from rankfold.papers.request import Request

NAMES = (
    "factorization", "completion", "sensing", "alpha", "rate", "start", "depth", "svd", "movielens", "movielens-alpha",
    "updates",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_quick_forms_write_tables_and_remarks(name, tmp_path):
    outcome = reproduce(f"cdln-{name}", tmp_path, Request(quick=True))
    assert len(outcome.table) >= 2
    assert outcome.remarks
    assert (tmp_path / "result.md").read_text(encoding="utf-8").startswith("# C-DLN")
    for figure in outcome.figures:
        assert (tmp_path / f"{figure}.svg").stat().st_size > 0


def test_options_of_training_networks_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cdln-alpha has no option"):
        reproduce("cdln-alpha", tmp_path, Request(finetune_epochs=3))
