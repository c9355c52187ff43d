"""As much at a time goes through a block as was told, whatever batches the data come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from folders import VOCABULARY, llama
from torch.utils.data import DataLoader

import rankfold as rf
from rankfold import hub
from rankfold.batches import size_of
from rankfold.observe import Replay
from rankfold.pipeline import BoundError
from rankfold.report.quantities import bytes_of

pytest.importorskip("transformers")
MEMORY = 300_000_000


def batches(*shapes: tuple[int, int], more: Any = lambda ids: {}) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    drawn = (torch.randint(3, VOCABULARY, shape, generator=draw) for shape in shapes)
    return [{"input_ids": ids, **more(ids)} for ids in drawn]


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return llama(tmp_path_factory.mktemp("models") / "dense")


def smallest(dense: Path, data: Any, out: Path) -> str:
    """The bound that a bound that is too small asks for."""
    with pytest.raises(BoundError, match=r"Give at least --memory \d+MB$") as error:
        rf.stream(dense, data, "params=0.9", out, memory=100_000)
    return str(error.value).rsplit(" ", 1)[1]


def test_batches_of_the_data_are_cut_to_as_many_samples_as_were_told(dense, tmp_path, monkeypatch):
    data = (batches(*[(8, 60)] * 4), batches((4, 60)), batches((8, 60), (3, 60)))
    sizes, run = [], Replay.run

    def counting(self, span, index, batch, *args, **kwargs):
        sizes.append(size_of(batch))
        return run(self, span, index, batch, *args, **kwargs)

    monkeypatch.setattr(Replay, "run", counting)
    found = rf.stream(dense, data, "params=0.8", tmp_path / "small", memory=smallest(dense, data, tmp_path / "small"))
    assert (found.needs["batch"], set(sizes)) == (1, {1})
    small = hub.opened(tmp_path / "small")
    assert rf.evaluate(small, data[2], objective="causal-lm")["perplexity"] == pytest.approx(
        found.after["perplexity"], rel=1e-5
    )
    sizes.clear()
    roomy = rf.stream(dense, data, "params=0.8", tmp_path / "roomy", memory=MEMORY)
    assert (roomy.needs["batch"], set(sizes)) == (8, {8, 3})  # as the data come, where that fits


def test_the_longest_sample_is_reckoned_with_and_not_the_first(dense, tmp_path):
    short = (batches((4, 4), *[(4, 48)] * 3), batches((4, 4)), batches((4, 4)))
    long = (batches(*[(4, 48)] * 4), batches((4, 4)), batches((4, 4)))
    watched = (batches(*[(4, 4)] * 4), batches((4, 4)), batches((4, 4), (4, 48)))
    found = [
        rf.stream(dense, data, "params=0.9", tmp_path / str(number), memory=MEMORY).needs
        for number, data in enumerate((short, long, watched))
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.filterwarnings("ignore::rankfold.batches.LeftOut")
def test_a_batch_that_cannot_be_cut_is_reckoned_with_as_a_whole(dense, tmp_path):
    """Positions beside the tokens of all samples have no row for each of them."""

    def told(shapes: list[tuple[int, int]]) -> tuple[str, int]:
        positions = lambda ids: {"cache_position": torch.arange(ids.shape[1])}  # noqa: E731
        parts = (batches(*part, more=positions) for part in (shapes, shapes[:1], shapes[:1]))
        data = tuple(DataLoader(part, batch_size=None) for part in parts)
        with pytest.raises(BoundError) as error:
            rf.stream(dense, data, "params=0.9", tmp_path / "small", memory=100_000)
        return str(error.value), bytes_of(str(error.value).rsplit(" ", 1)[1])

    (one, less), (many, more) = told([(12, 12)] * 4), told([(64, 12)] * 4)
    assert "the activations of one sample" in one
    assert "the activations of the 64 samples of a batch that cannot be cut" in many
    assert more > less
