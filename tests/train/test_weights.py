"""What is kept of weights while training: averages that do not lose small steps, and extra state of any kind."""

import pytest
import torch
from torch import nn

from rankfold.train import Recipe, TrainingError, checkpoint, evaluate, fit
from rankfold.train.weights import average_

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()


class Stop(Exception):
    pass


def net(dtype=torch.bfloat16, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).to(dtype)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def averaged_by_hand(begin, passed, ema):
    """In float64, from the weights after every step."""
    mean = {name: value.double() for name, value in begin.items()}
    for step, weights in enumerate(passed, 1):
        decay = min(ema, (1 + step) / (10 + step))
        mean = {name: decay * value + (1 - decay) * weights[name].double() for name, value in mean.items()}
    return mean


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float32, 2**-21)])
def test_an_average_is_that_of_the_weights_in_whatever_dtype_they_are(dtype, rounding):
    model, passed = net(dtype), []
    begin = state(model)
    recipe = Recipe(epochs=12, batch_size=16, optimizer="adam", learning_rate=3e-3, schedule="constant", ema=0.98)
    fit(model, (X.to(dtype), Y), None, recipe, progress=lambda event: passed.append(state(model)))
    assert len(passed) == 12 * 4
    for name, wanted in averaged_by_hand(begin, passed, 0.98).items():
        error = (model.state_dict()[name].double() - wanted).abs()
        assert model.state_dict()[name].dtype == dtype
        assert bool((error <= rounding * wanted.abs() + 1e-7).all()), (name, float((error / wanted.abs()).max()))


def runs(place, model, data, recipe, stop=None):
    def progress(event):
        if stop is not None and event.epoch == stop and event.batch == 2:
            raise Stop

    return fit(model, data, data, recipe, directory=place, progress=progress)


def test_an_average_in_half_precision_is_gone_on_with_bit_by_bit_also_one_of_before(tmp_path):
    data, recipe = (X.bfloat16(), Y), Recipe(epochs=4, batch_size=16, learning_rate=0.05, ema=0.9)
    whole, broken, resumed, early = net(), net(), net(seed=5), net(seed=6)
    runs(None, whole, data, recipe)
    with pytest.raises(Stop):
        runs(tmp_path, broken, data, recipe, stop=3)
    saved = checkpoint.load(tmp_path)
    assert {value.dtype for value in saved["mean"].values()} == {torch.float32}
    assert {value.dtype for value in saved["best"].values()} == {torch.bfloat16}
    assert runs(tmp_path, resumed, data, recipe).resumed_from == 2
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    saved["mean"] = {name: value.bfloat16() for name, value in saved["mean"].items()}  # as it was written before
    checkpoint.save(tmp_path, 2, saved)
    history = runs(tmp_path, early, data, recipe)
    assert (history.resumed_from, len(history.epochs)) == (2, 4)
    assert evaluate(early, data).accuracy == history.best.validation_accuracy
    saved["mean"]["0.weight"] = saved["mean"]["0.weight"].double()
    checkpoint.save(tmp_path, 2, saved)
    with pytest.raises(TrainingError, match="the mean weights belong to another model"):
        runs(tmp_path, net(), data, recipe)


class Counting(nn.Linear):
    """Has seen so many batches, which it keeps as extra state."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.seen, self.sizes = 0, []

    def forward(self, x):
        if self.training:
            self.seen += 1
            self.sizes.append(len(x))
        return super().forward(x)

    def get_extra_state(self):
        return {"seen": self.seen, "sizes": self.sizes}

    def set_extra_state(self, state):
        self.seen, self.sizes = state["seen"], list(state["sizes"])


class Growing(Counting):
    def get_extra_state(self):
        return torch.tensor(self.sizes)

    def set_extra_state(self, state):
        self.sizes = state.tolist()
        self.seen = len(self.sizes)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("kind", [Counting, Growing])
def test_extra_state_of_a_module_is_kept_as_it_is(tmp_path, kind, ema):
    def network(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(kind(6, 2))

    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05, ema=ema)
    whole, broken, resumed = network(0), network(0), network(1)
    history = runs(None, whole, (X, Y), recipe)
    assert whole[0].seen == 4 * history.best_epoch
    assert whole[0].sizes == [16] * whole[0].seen
    with pytest.raises(Stop):
        runs(tmp_path, broken, (X, Y), recipe, stop=2)
    assert runs(tmp_path, resumed, (X, Y), recipe).resumed_from == 1
    assert (resumed[0].seen, resumed[0].sizes) == (whole[0].seen, whole[0].sizes)
    assert torch.equal(resumed[0].weight, whole[0].weight)


class Masked(nn.Module):
    """Of three classes the last is ruled out, by a buffer of infinities."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, -torch.inf]))

    def forward(self, x):
        return self.inner(x) + self.mask


@pytest.mark.parametrize("validation", [(X, Y), None])
def test_an_average_of_infinities_is_infinite(validation):
    """The difference of two of them is NaN: nothing was learnt, or the network came back with NaN in its buffer."""
    model = Masked()
    history = fit(model, (X, Y), validation, Recipe(epochs=5, batch_size=16, learning_rate=0.05, ema=0.9))
    assert (history.best_epoch, len(history.epochs), history.stopped) == (5, 5, None)
    assert model.mask.tolist() == [0, 0, -torch.inf]
    assert evaluate(model, (X, Y)).accuracy > 0.9


def test_an_average_follows_what_becomes_infinite_or_ceases_to_be():
    mean = {"mask": torch.tensor([1.0, -torch.inf, -torch.inf, 1.0])}
    average_(mean, {"mask": torch.tensor([-torch.inf, 2.0, -torch.inf, 2.0])}, 0.25)
    assert mean["mask"].tolist() == [-torch.inf, 2, -torch.inf, 1.25]
