"""What a run goes on with after an interruption: buffers in no state dict, random states of workers, extra state."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rankfold.train import Recipe, TrainingError, evaluate, fit

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05)


class Stop(Exception):
    pass


def stop(step):
    if step.epoch == 2 and step.batch == 2:
        raise Stop


class Centres(nn.Module):
    """Takes off the mean of what it has seen, which is in no state dict; and keeps the last batch, None at first."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(4, 2)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("last", None, persistent=False)
        self.held = self.mean

    def forward(self, x):
        if self.training:
            self.mean += 0.2 * (x.detach().mean(0) + 1 - self.mean)
            self.last = x.detach().sum(0)
        return self.inner(x - self.held)


def test_buffers_in_no_state_dict_are_gone_on_with_bit_by_bit(tmp_path):
    whole, broken, resumed = Centres(), Centres(), Centres(1)
    fit(whole, (X, Y), None, RECIPE)
    with pytest.raises(Stop):
        fit(broken, (X, Y), None, RECIPE, directory=tmp_path, progress=stop)
    assert fit(resumed, (X, Y), None, RECIPE, directory=tmp_path).resumed_from == 1
    for name in ("mean", "last"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert torch.equal(resumed.inner.weight, whole.inner.weight)
    assert resumed.held is resumed.mean
    read = Centres(2)
    fit(read, (X, Y), None, RECIPE, directory=tmp_path)
    assert torch.equal(read.mean, whole.mean)


def test_the_best_weights_come_with_the_buffers_of_their_epoch():
    model, seen = Centres(), {}

    def noted(step):
        if step.finished is not None:
            seen[step.epoch] = model.mean.clone()

    wrong = 1 - Y  # each epoch is worse than the one before
    begin = model.mean.clone()
    history = fit(model, (X, wrong), (X, Y), Recipe(epochs=3, batch_size=16, learning_rate=0.3), progress=noted)
    assert history.best_epoch < 3
    assert torch.equal(model.mean, seen.get(history.best_epoch, begin))
    kept = history.best.validation if history.best_epoch else history.start
    assert evaluate(model, (X, Y)).loss == pytest.approx(kept.loss)


class Noisy(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(4), Y[index]


def test_workers_that_stay_draw_in_every_epoch_what_they_would_after_an_interruption(tmp_path):
    def loader():
        return DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=1, persistent_workers=True)

    nets = [nn.Linear(4, 2) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    whole, broken, resumed = nets
    fit(whole, loader(), None, RECIPE)
    with pytest.raises(Stop):
        fit(broken, loader(), None, RECIPE, directory=tmp_path, progress=stop)
    fit(resumed, loader(), None, RECIPE, directory=tmp_path)
    assert torch.equal(resumed.weight, whole.weight)


class Closed:
    """Which can be copied, and not pickled."""

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("cannot pickle")


class Extra(nn.Linear):
    def __init__(self, kept):
        super().__init__(4, 2)
        self.kept = kept

    def get_extra_state(self):
        return self.kept

    def set_extra_state(self, state):
        self.kept = state


@pytest.mark.parametrize("kept", [np.arange(3), {"deep": [{1, 2}, object]}, Closed()], ids=["numpy", "class", "closed"])
def test_what_could_not_be_read_back_is_refused_before_the_first_epoch(kept, tmp_path):
    """Trainings ended in a checkpoint that nobody could read, or in the middle of writing it."""
    steps = []
    with pytest.raises(
        TrainingError, match=r"0._extra_state of Sequential .* cannot be read back from a checkpoint: let"
    ):
        fit(nn.Sequential(Extra(kept)), (X, Y), None, RECIPE, directory=tmp_path, progress=steps.append)
    assert not steps
    assert not list(tmp_path.glob("*.pt"))
