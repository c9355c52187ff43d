"""Data are known by what is in them: every kind, inputs and targets, and nothing is disturbed in looking."""

import copy
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from rankfold import pipeline
from rankfold.compress.methods.relu import ActivationAware
from rankfold.compress.planning.planner import plan
from rankfold.run import digest as module
from rankfold.run.digest import SAMPLES, digest
from rankfold.zoo import load_data
from rankfold.zoo.samples import Samples

N = 500


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, 3, generator=generator), torch.randint(4, (N,), generator=generator)


class Rows(Dataset):
    """Samples of which nothing is known but their number."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, noise: bool = False) -> None:
        self.x, self.y, self.noise, self.read = x, y, noise, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        self.read += 1
        x = self.x[index]
        if self.noise:
            x = x + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        return {"x": x.numpy(), "text": f"{float(x[0]):.3f}", "labels": int(self.y[index])}


class Stream(IterableDataset):
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.pairs)


class OwnBatches:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def batches(self, size: int):
        return zip(self.x.split(size), self.y.split(size), strict=True)


KINDS = {
    "tensor": lambda x, y: torch.cat([x, y[:, None]], 1),
    "pair": lambda x, y: (x, y),
    "mapping": lambda x, y: {"ids": x, "labels": y},
    "tensor data set": TensorDataset,
    "data set": Rows,
    "noisy data set": lambda x, y: Rows(x, y, noise=True),
    "subset": lambda x, y: Subset(Rows(x, y), range(0, len(x), 2)),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True),
    "loader of dicts": lambda x, y: DataLoader(Rows(x, y), batch_size=32),
    "stream": Stream,
    "loader of a stream": lambda x, y: DataLoader(Stream(x, y), batch_size=8),
    "batches": lambda x, y: list(zip(x.split(50), y.split(50), strict=True)),
    "batches of dicts": lambda x, y: [{"x": a, "y": {"z": b}} for a, b in zip(x.split(50), y.split(50), strict=True)],
    "own batches": OwnBatches,
    "samples": lambda x, y: Samples([(row, row) for row in x], y),
}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_data_have_one_digest_and_others_have_others(kind):
    make, (x, y) = KINDS[kind], tensors()
    first = digest(make(x, y))
    assert first == digest(make(x.clone(), y.clone()))
    assert first != digest(make(*tensors(1)))
    assert first != digest(make(x, (y + 1) % 4))
    assert first != digest(make(-x, y))
    for at in (0, N - 1) if kind not in ("subset", "stream", "loader of a stream", "own batches") else (0,):
        other = x.clone()
        other[at] += 1
        assert first != digest(make(other, y)), at
    if kind not in ("stream", "own batches", "loader of a stream"):
        assert first != digest(make(x[:-2], y[:-2]))


def test_a_constant_digest_is_seen(monkeypatch):
    """The check above rejects it."""
    monkeypatch.setattr(module, "_hashed", lambda data, labels_alone=False: "0" * 16)
    with pytest.raises(AssertionError):
        test_equal_data_have_one_digest_and_others_have_others("pair")


def test_the_splits_of_the_zoo_are_told_apart_by_a_single_label():
    train = load_data("digits").train
    other = copy.deepcopy(train)
    other.labels[617] = (other.labels[617] + 1) % 10
    assert digest(train) == digest(copy.deepcopy(train)) != digest(other)


def test_looking_is_bounded_and_leaves_all_generators_as_found():
    data, generator = Rows(*tensors(), noise=True), torch.Generator().manual_seed(3)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    states = torch.get_rng_state(), generator.get_state()
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    digest(loader)
    assert data.read <= 2 * SAMPLES
    assert torch.equal(states[0], torch.get_rng_state())
    assert torch.equal(states[1], generator.get_state())
    assert (python, numpy) == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_samples_that_are_never_the_same_are_known_by_their_labels_alone():
    class Fresh(TensorDataset):
        generator = np.random.default_rng()

        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return x + float(self.generator.random()), y

    x, y = tensors()
    assert digest(Fresh(x, y)) == digest(Fresh(x, y)) != digest(Fresh(x, (y + 1) % 4))


def test_what_can_be_read_once_is_left_alone():
    data = iter([torch.zeros(2)])
    assert digest(data) == "? of list_iterator"
    assert len(list(data)) == 1
    assert digest(None) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.int8])
def test_every_dtype_counts(dtype):
    x = torch.arange(12).reshape(4, 3).to(dtype)
    assert digest(x) == digest(x.clone()) != digest(x.flip(1).to(dtype) if dtype != torch.bool else ~x)


class Two:
    """Data of one length, whose first batch alone is the same."""

    def __init__(self, seed: int) -> None:
        parts = []
        for count in (256, 128, 128):
            x, y = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(count) % 4
            x[200:] *= seed
            x[100:] *= seed if count == 128 else 1
            parts.append(TensorDataset(x, y))
        self.train, self.validation, self.test = parts


def test_the_figures_of_other_data_are_not_handed_out(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    settings = pipeline.Settings(curve=False, samples=64)
    done = pipeline.compress(network.eval(), Two(1), "params=0.6", settings=settings, directory=tmp_path)
    with pytest.raises(ValueError, match="data: other train, validation, test"):
        pipeline.compress(network, Two(9), "params=0.6", settings=settings, directory=tmp_path)
    again = pipeline.compress(network, Two(1), "params=0.6", settings=settings, directory=tmp_path)
    assert again.before == done.before


def test_a_fit_of_other_data_is_not_taken_up(tmp_path):
    """Although its first batch is the same."""
    network = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[128:] = other[128:].square()
    for data in (x, x, other):
        plan(network, "params=0.6", ActivationAware(), data, directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
