"""Networks that do more than compute while they run: they count, compute their layers again, differentiate, call them
inside of transforms, or change what a layer gives in a hook."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import rankfold as rf
from rankfold.batches import copied

X = torch.randn(48, 10, generator=torch.Generator().manual_seed(3))
METHODS = ("truncate", "project", "sequential")


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(10, 16), nn.Linear(16, 24), nn.Linear(24, 4)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.a(x))))


class Checkpointed(Three):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(checkpoint(lambda h: torch.relu(self.b(h)), self.a(x), use_reentrant=False))


class Counting(Three):
    """Its buffers change with every call; one of them is another one afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x)


class Differentiating(Three):
    """As a network of energies that gives forces."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            h = self.a(x)
            force = torch.autograd.grad(self.b(h).square().sum(), h)[0]
        return self.c(torch.relu(self.b(force)))


class Written(Three):
    """What hooks do to another one, below."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()) * 2 + 1)


class Mapped(Three):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.vmap(lambda row: torch.relu(self.b(row)))(self.a(x)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Checkpointed, Counting, Differentiating])
def test_it_is_planned_and_made_as_any_other(kind, method):
    model = kind()
    known = rf.profile(model, X, method=method)
    small = rf.apply_(copied(model), known.plan("params=0.7"), known)
    assert small(X).isfinite().all()
    if method != "sequential":
        full = {site.name: site.max_rank(rf.Form.FACTORED) for site in known.sites}
        whole = rf.apply_(copied(model), known.plan(rf.Ranks(full)), known)
        assert torch.allclose(whole(X), model(X), rtol=1e-4, atol=1e-4)


def test_buffers_that_a_call_changes_are_left_as_found():
    model = Counting()
    mean = model.mean
    known = rf.profile(model, X, method="truncate")
    known.plan("params=0.7")
    rf.evaluate(model, (X, torch.zeros(48, dtype=torch.long)))
    rf.model_cost(model, X[:1])
    rf.latencies({"a": model}, X, rounds=3, seconds=0.01)
    assert (int(model.calls), model.mean is mean, float(mean.abs().sum())) == (0, True, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_layers_called_inside_of_a_transform_are_kept_and_say_so(method):
    known = rf.profile(Mapped(), X, method=method)
    assert {entry.site for entry in known.plan("params=0.9").changed} <= {"a", "c"}
    assert "torch.func" in known.sites["b"].note
    assert known.cost.flops == 2 * (10 * 16 + 16 * 24 + 24 * 4)
    with pytest.raises(ValueError, match=r"possible ranks are none: it is called inside of torch\.func"):
        known.plan(rf.Ranks({"b": 2}))


@pytest.mark.parametrize("method", METHODS)
def test_what_hooks_make_of_a_layer_is_theirs(method):
    model = Three()
    model.a.register_forward_hook(lambda module, given, output: output.relu())
    model.b.register_forward_hook(lambda module, given, output: (output * 2,))
    model.c.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    model.forward = lambda x: model.c(model.b(model.a(x))[0])  # type: ignore[method-assign]
    known = rf.profile(model, X, method=method)
    plan = known.plan("params=0.7")
    assert rf.apply_(copied(model), plan, known)(X).shape == (48, 4)
    if method == "project":
        full = rf.apply_(copied(model), known.plan(rf.Ranks({"a": 10, "b": 16, "c": 4})), known)
        assert torch.allclose(full(X), model(X), atol=1e-4)
        written = rf.profile(Written(), X).candidate("b", rf.Form.FACTORED)
        hooked = known.candidate("b", rf.Form.FACTORED)
        assert torch.allclose(hooked.relative_errors, written.relative_errors, atol=1e-4)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_pruned_layers_are_kept_and_say_so(parameter):
    model = nn.Sequential(Three(), nn.LSTM(4, 8))
    prune.l1_unstructured(model[0].b, parameter, 0.5)
    prune.l1_unstructured(model[1], f"{parameter}_hh_l0", 0.5)
    left_out = dict(rf.sites(model).left_out)
    for name in ("0.b.weight" + "_orig" * (parameter == "weight"), f"1.{parameter}_hh_l0_orig"):
        assert "torch.nn.utils.prune.remove" in left_out[name]
    assert {site.name for site in rf.sites(model)} == {"0.a", "0.c"}


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("changed", ["weight_norm", "prune"])
def test_weights_computed_for_a_call_can_be_copied_saved_and_loaded(changed, tmp_path):
    def made() -> nn.Module:
        model = Three()
        if changed == "prune":
            prune.l1_unstructured(model.b, "weight", 0.5)
        else:
            nn.utils.weight_norm(model.b)
        return model

    model = made()
    known = rf.profile(model, X)
    plan = known.plan("params=0.95")
    small = rf.apply_(copied(model), plan, known)
    rf.save(small, plan, tmp_path / "small")
    assert torch.equal(rf.load(tmp_path / "small", made()).model(X), small(X))
