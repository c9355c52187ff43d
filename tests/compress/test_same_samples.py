"""Networks that are compared meet the same samples in the same order, whatever sampler draws them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

import rankfold as rf
from rankfold.pipeline import Settings, analyse, compress
from rankfold.pipeline.quality.halves import few_of, halves
from rankfold.pipeline.quality.interval import fall
from rankfold.train import TrainingError, counted


def pairs(count: int = 300) -> TensorDataset:
    return TensorDataset(torch.arange(float(count)).unsqueeze(1), torch.zeros(count, dtype=torch.long))


class Batches(BatchSampler):
    """Batches of its own making."""


DRAWN = {
    "shuffled": lambda data: DataLoader(data, 32, shuffle=True),
    "again and again": lambda data: DataLoader(data, 32, sampler=WeightedRandomSampler(torch.ones(300), 300)),
    "one by one": lambda data: DataLoader(data, None, shuffle=True),
    "batches": lambda data: DataLoader(data, batch_sampler=Batches(RandomSampler(data), 32, False)),
}


def read(data) -> list[torch.Tensor]:
    return [torch.as_tensor(batch[0]) for batch in data]


@pytest.mark.parametrize("kind", DRAWN)
def test_what_a_sampler_draws_is_settled_once(kind: str) -> None:
    loader = DRAWN[kind](pairs())
    few, state = few_of(loader, 1000), torch.get_rng_state()
    first, second = read(few), read(few)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert [len(batch) for batch in first] == [len(batch) for batch in read(loader)]
    values = torch.cat([batch.reshape(-1) for batch in first])
    assert len(values) == 300
    assert len(values.unique()) == 300 if kind != "again and again" else 150 < len(values.unique()) < 230
    torch.set_rng_state(state)


def test_what_every_pass_reads_alike_comes_back_as_it_is() -> None:
    for data in (pairs(), DataLoader(pairs(), 32), DataLoader(pairs(), batch_sampler=[[0, 1], [2]])):
        assert few_of(data) is data
        assert few_of(data, 300) is data


def test_a_shuffled_loader_is_advised_on_like_one_in_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(900, 16)
    y = (x[:, 0] + 0.5 * torch.randn(900) > 0).long()
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    whole = TensorDataset(x[500:], y[500:])
    again = WeightedRandomSampler(torch.ones(400), 400)
    made = []
    for how in ({}, {"shuffle": True}, {"sampler": again}):
        data = SimpleNamespace(train=(x[:500], y[:500]), validation=DataLoader(whole, 32, **how))
        before = torch.get_rng_state()
        made.append(rf.advise(net, data, seconds=20, batches=(), seed=1).tried)
        assert torch.equal(torch.get_rng_state(), before)
    one, other, drawn = made
    assert [(point.drop, point.interval) for point in one] == [(point.drop, point.interval) for point in other]
    assert min(point.interval[1] - point.interval[0] for point in drawn) < 0.03  # of other samples: above 0.1


def test_random_states_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 8)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 16, shuffle=True, generator=torch.Generator())
    before, own = torch.get_rng_state(), loader.generator.get_state()
    analyse(net, loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loader.generator.get_state(), own)


class Opened(Dataset):
    """A data set that opens its file in each worker."""

    def __init__(self) -> None:
        self.file: list[float] | None = None

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        assert self.file is not None
        return torch.tensor([self.file[index]]), 0


def opened(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.file = [float(number) for number in range(40)]


def test_a_part_of_a_loader_is_that_loader_in_all_but_its_indices() -> None:
    loader = DataLoader(Opened(), 8, num_workers=1, worker_init_fn=opened, timeout=60, persistent_workers=True)
    read(loader)  # its workers stay: they know the old indices
    parts = halves(loader)
    found = [
        sorted(float(value) for batch in read(part.data) for value in batch) for part in (parts.search, parts.judge)
    ]
    assert sorted(found[0] + found[1]) == [float(number) for number in range(40)]
    assert [len(part) for part in found] == [20, 20]
    assert (parts.search.data.worker_init_fn, parts.search.data.timeout) == (opened, 60)
    assert len(read(loader)) == 5


def test_where_no_target_counts_that_is_said() -> None:
    net, x = nn.Linear(4, 2), torch.randn(8, 4)
    sums = counted(net, (x, torch.full((8,), -100)), 2, objective="classification", apart=True)
    with pytest.raises(TrainingError, match=r"^validation data: no target of the samples that judge counts.*-100"):
        fall(sums, sums)


@pytest.mark.parametrize(
    ("validation", "said"),
    [([], "it is empty"), (None, "not a NoneType"), (iter([]), "can be read only once")],
)
def test_missing_validation_data_are_refused_before_any_work(validation, said: str) -> None:
    x = torch.randn(32, 4)
    data = SimpleNamespace(train=(x, (x[:, 0] > 0).long()), validation=validation)
    with pytest.raises(TrainingError, match=f"^validation data: .*{said}"):
        rf.advise(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), data, seconds=0.1)


def test_a_sampler_gives_the_test_split_the_same_samples_for_every_network() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)), torch.randn(300, 32)
    net[0].weight.data = net[0].weight.data[:, :2] @ net[0].weight.data[:2]  # half of it is more than it needs
    y = (x[:, 0] + torch.randn(300) > 0).long()
    held = DataLoader(TensorDataset(x, y), 32, sampler=WeightedRandomSampler(torch.ones(300), 300))
    data = SimpleNamespace(train=(x, y), validation=(x, y), test=held)
    result = compress(net, data, "params=0.6", settings=Settings(finetune=False))
    assert result.compressed.score.loss == pytest.approx(result.before.score.loss, rel=1e-4)
