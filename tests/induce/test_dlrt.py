"""Dynamical low-rank training: what one backward pass gathers, how bases and ranks move, and what comes out."""

import copy
import functools
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.induce import dlrt_choice
from rankfold.layers import DynamicLowRank
from rankfold.linalg.errors import NonFiniteError
from rankfold.train import TrainingError


def network(seed: int = 0, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20 * 16, 24),
        nn.Tanh(),
        nn.Linear(24, 5),
    ).to(dtype)


def data(count: int = 64, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=generator).to(dtype), torch.randint(
        0, 5, (count,), generator=generator
    )


def trained(model, optimizer, steps: int, batch: int = 16, half: bool = False) -> list[float]:
    x, y = data(dtype=next(model.parameters()).dtype)
    losses = []
    for step in range(steps):
        part = slice(batch * step % len(x), batch * step % len(x) + batch)

        def closure(part=part):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                loss = F.cross_entropy(model(x[part]), y[part])
            loss.backward()
            return loss

        if optimizer.integrator in ("augmented", "fixed"):
            losses.append(float(optimizer.step(closure).detach()))
        else:
            losses.append(float(closure().detach()))
            optimizer.step()
    return losses


LAYERS = {
    "linear": (lambda: nn.Linear(7, 6), (5, 7)),
    "linear over time": (lambda: nn.Linear(7, 6, bias=False), (4, 3, 7)),
    "strided": (lambda: nn.Conv2d(3, 6, 3, stride=2, padding=1), (4, 3, 9, 8)),
    "dilated, circular": (
        lambda: nn.Conv2d(3, 6, (3, 2), dilation=2, padding=2, padding_mode="circular"),
        (2, 3, 9, 9),
    ),
    "same": (lambda: nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 11)),
    "volume": (lambda: nn.Conv3d(2, 6, 2), (2, 2, 4, 4, 4)),
}


def pass_through(low: nn.Module, reference: nn.Module, shape: tuple[int, ...]) -> None:
    """Two backward passes, whose gradients add up, through a model and the same one folded: outputs and gradients of
    the inputs are equal."""
    for seed in (1, 2):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        out, expected = low(x), reference(x)
        assert torch.allclose(out, expected, atol=1e-13)
        toward = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 9))
        (given,) = torch.autograd.grad((out * toward).sum(), x, retain_graph=True)
        (wanted,) = torch.autograd.grad((expected * toward).sum(), x, retain_graph=True)
        assert torch.allclose(given, wanted, atol=1e-13)
        (out * toward).sum().backward()
        (expected * toward).sum().backward()


@pytest.mark.parametrize("kind", LAYERS)
def test_one_backward_gathers_the_weights_gradient_times_each_basis(kind):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    dense = nn.Sequential(make()).double()
    low = rf.dlrt_(copy.deepcopy(dense), 3, where="*")
    layer = low[0]
    reference = rf.fold_(copy.deepcopy(low))
    layer.probing = True
    pass_through(low, reference, shape)
    g = reference[0].weight.grad.reshape(layer.shape)
    left, right = layer.gradients
    assert torch.allclose(left, g @ layer.right.T, atol=1e-12)
    assert torch.allclose(right, layer.left.T @ g, atol=1e-12)
    assert torch.allclose(layer.core.grad, layer.left.T @ g @ layer.right.T, atol=1e-12)
    if layer.bias is not None:
        assert torch.allclose(layer.bias.grad, reference[0].bias.grad)
    assert layer.weight.shape == dense[0].weight.shape


def test_a_parallel_step_of_sgd_follows_the_projected_gradient():
    torch.manual_seed(0)
    model = rf.dlrt_(nn.Sequential(nn.Linear(9, 8)).double(), 2, where="*")
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, integrator="parallel", tolerance=0.0)
    layer = model[0]
    w, u, v = (layer.left @ layer.core @ layer.right).detach(), layer.left @ layer.left.T, layer.right.T @ layer.right
    x, y = torch.randn(6, 9).double(), torch.randn(6, 8).double()
    dense = w.clone().requires_grad_()
    F.mse_loss(F.linear(x, dense, layer.bias.detach()), y).backward()
    F.mse_loss(model(x), y).backward()
    optimizer.step()
    g = dense.grad
    assert torch.allclose(layer.left @ layer.core @ layer.right, w - 0.1 * (u @ g + g @ v - u @ g @ v), atol=1e-14)
    assert layer.rank == 4


@pytest.mark.parametrize("integrator", ["window", "parallel", "augmented", "fixed"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_every_integrator_learns(integrator, kind):
    model = rf.dlrt_(network(), 6)
    settings = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 0.02}
    optimizer = rf.Dlrt(model, getattr(torch.optim, kind), integrator=integrator, window=8, **settings)
    losses = trained(model, optimizer, 64)
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    assert all(tail <= 0.1 for tail in optimizer.tails.values())
    for layer in optimizer.layers.values():
        for basis in (layer.left, layer.right.T):
            assert (basis.T @ basis - torch.eye(layer.rank).double()).norm() < 1e-12
    if integrator == "fixed":
        assert set(optimizer.ranks.values()) == {6}


def of_one_layer(m: int, n: int, rank: int, integrator: str = "window"):
    """A convex problem whose least is zero, and how to take so many steps of it."""
    torch.manual_seed(0)
    x = torch.randn(200, n, dtype=torch.float64)
    y = x @ torch.randn(m, n, dtype=torch.float64).mT / n**0.5
    model = rf.dlrt_(nn.Sequential(nn.Linear(n, m, bias=False, dtype=torch.float64)), rank, where="*")
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, tolerance=1e-3, integrator=integrator, window=5)

    def steps(model: nn.Module, optimizer: rf.Dlrt, count: int) -> float:
        for _ in range(count):
            optimizer.zero_grad()
            loss = (model(x) - y).square().sum(1).mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    return model, optimizer, steps


@pytest.mark.parametrize("integrator", ["window", "parallel"])
@pytest.mark.parametrize(("m", "n"), [(8, 24), (24, 8)])
@pytest.mark.parametrize("rank", [5, 8])
def test_a_side_that_is_complete_does_not_hold_the_other_back(m, n, rank, integrator):
    model, optimizer, steps = of_one_layer(m, n, rank, integrator)
    assert steps(model, optimizer, 400) < 1e-4
    assert optimizer.ranks == {"0": 8}


@pytest.mark.parametrize(("m", "n"), [(8, 24), (24, 8)])
def test_a_window_with_unequal_sides_is_saved_loaded_folded_and_copied(m, n, tmp_path):
    model, optimizer, steps = of_one_layer(m, n, 6)
    steps(model, optimizer, 7)  # two of five steps into the second window
    core = model[0].core
    assert core.shape[0] != core.shape[1]
    assert core.shape == (model[0].left.shape[1], model[0].right.shape[0])
    other, its, _ = of_one_layer(m, n, 6)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other.load_state_dict(state["model"])
    its.load_state_dict(state["optimizer"])
    weight = model[0].weight.detach().clone()
    folded = rf.fold_(copy.deepcopy(model))
    assert torch.allclose(folded[0].weight, weight, atol=1e-14)
    factored = rf.fold_(copy.deepcopy(model), keep=True)
    assert factored[0].rank == 8
    x = torch.randn(3, n, dtype=torch.float64)
    assert torch.allclose(factored(x), x @ weight.mT, atol=1e-13)
    steps(model, optimizer, 20)
    steps(other, its, 20)
    assert torch.equal(model[0].weight, other[0].weight)


def test_gradients_may_be_cleared_between_forward_and_backward():
    model = rf.dlrt_(network(), 4)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1)
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert optimizer.ranks == {"0": 8, "4": 8}  # bases grew by what backward gathered


def test_ranks_grow_in_windows_and_not_when_directions_are_cut_at_every_step():
    torch.manual_seed(3)
    target = torch.randn(20, 6).double() @ torch.randn(6, 18).double()
    x = torch.randn(200, 18, generator=torch.Generator().manual_seed(0)).double()
    found = {}
    for integrator in ("window", "parallel"):
        torch.manual_seed(0)
        model = rf.dlrt_(nn.Sequential(nn.Linear(18, 20, bias=False)).double(), 2, where="*")
        optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.02, integrator=integrator, window=20, tolerance=0.1)
        for _ in range(600):
            optimizer.zero_grad()
            F.mse_loss(model(x), x @ target.T).backward()
            optimizer.step()
        found[integrator] = optimizer.ranks["0"]
    assert found["window"] >= 5
    assert found["parallel"] == 2


def test_a_budget_holds_after_its_windows_and_the_folded_network_has_as_many_parameters():
    model = rf.dlrt_(network(), 20)
    dense = sum(p.numel() for p in network().parameters())
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=3e-3, window=5, budget=0.4, reach=3)
    trained(model, optimizer, 5)
    assert not optimizer.met  # sizes fall step by step
    with pytest.warns(UserWarning, match=r"the budget was not reached: .* 1 of reach=3 windows have closed: train lon"):
        rf.fold_(copy.deepcopy(model))
    trained(model, optimizer, 5)
    for _ in range(3):
        trained(model, optimizer, 5)
        assert optimizer.met
        small = rf.fold_(copy.deepcopy(model), keep=True)
        count = sum(p.numel() for p in small.parameters())
        assert count <= 0.4 * dense
        assert count + max(sum(layer.shape) for layer in optimizer.layers.values()) > 0.4 * dense  # little is left over
    with pytest.raises(ValueError, match=r"cannot be met: .* Allow at least budget="):
        rf.Dlrt(model, torch.optim.Adam, budget=0.001)


def test_folding_gives_ordinary_layers_or_factored_ones_of_the_same_function(tmp_path):
    model = rf.dlrt_(network(), 6)
    keys = list(network().state_dict())
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=3e-3, window=5)
    trained(model, optimizer, 10)
    model.eval()
    x, _ = data()
    expected = model(x).detach()
    small = rf.fold_(copy.deepcopy(model), keep=True)
    assert isinstance(small[0], rf.LowRankConv)
    assert isinstance(small[4], rf.LowRankLinear)
    assert torch.allclose(small(x), expected, atol=1e-12)
    ranks = optimizer.ranks
    rf.fold_(model)
    assert type(model[0]) is nn.Conv2d
    assert list(model.state_dict()) == keys
    assert torch.allclose(model(x), expected, atol=1e-12)
    plan = rf.plan(model, rf.Ranks(ranks), "truncate", example=x[:1])
    again = copy.deepcopy(model)
    rf.save(rf.apply_(again, plan), plan, tmp_path / "small")
    assert torch.allclose(rf.load(tmp_path / "small", network()).model.eval()(x), expected, atol=1e-10)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_interrupted_and_resumed_is_as_uninterrupted_to_the_bit(kind, tmp_path):
    settings = {"lr": 0.05, "momentum": 0.9} if kind == "SGD" else {"lr": 3e-3, "amsgrad": True}
    made = lambda rank: rf.dlrt_(network(dtype=torch.float32), rank)  # noqa: E731
    whole = made(4)
    optimizer = rf.Dlrt(whole, getattr(torch.optim, kind), window=7, tolerance=0.3, **settings)
    trained(whole, optimizer, 18)
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "kept.pt")
    between = optimizer.ranks
    trained(whole, optimizer, 20)
    resumed = made(2)
    other = rf.Dlrt(resumed, getattr(torch.optim, kind), window=7, tolerance=0.3, **settings)
    kept = torch.load(tmp_path / "kept.pt", weights_only=True)
    resumed.load_state_dict(kept["model"])
    other.load_state_dict(kept["optimizer"])
    assert other.ranks == between
    trained(resumed, other, 20)
    assert min(between.values()) > 2  # those that the resumed one began with
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_another_matrix_is_not_loaded():
    one, two = rf.dlrt_(network(), 3), rf.dlrt_(nn.Sequential(*list(network())[:-3], nn.Linear(320, 30)).double(), 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        two.load_state_dict({key: value for key, value in one.state_dict().items() if not key.startswith("6")})


@pytest.mark.parametrize("condition", [rf.Condition(1.5), rf.Spread(1.0)])
def test_conditioning_keeps_singular_values_together(condition):
    found = {}
    for name, how in (("without", None), ("with", condition)):
        model = rf.dlrt_(network(), 6)
        optimizer = rf.Dlrt(model, torch.optim.Adam, lr=3e-3, window=8, tolerance=0.2, condition=how)
        trained(model, optimizer, 48)
        values = [torch.linalg.svdvals(layer.core.detach()) for layer in optimizer.layers.values()]
        found[name] = max(float(v[0] / v[-1]) for v in values)
    assert found["with"] < found["without"]
    if isinstance(condition, rf.Condition):
        assert found["with"] <= 1.5 * (1 + 1e-6)


def test_what_is_left_out_has_a_reason():
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, groups=2), nn.ConvTranspose2d(32, 32, 3), nn.Linear(64, 10), nn.Linear(64, 64),
        nn.MultiheadAttention(32, 2), nn.Linear(32, 32).requires_grad_(False), nn.Embedding(50, 32),
    )  # fmt: skip
    chosen, left_out = dlrt_choice(model)
    assert [site.name for site in chosen] == ["3"]
    reasons = dict(left_out)
    assert reasons["0.weight"] == "a grouped convolution"
    assert reasons["1.weight"] == "a transposed convolution"
    assert "smaller side is only 10" in reasons["2.weight"]
    assert "MultiheadAttention" in reasons["4.out_proj.weight"]
    assert "frozen" in reasons["5.weight"]
    assert "embedding" in reasons["6.weight"]
    with pytest.raises(ValueError, match=r"no layer of the model can be trained at low rank \(0\.weight: a grouped"):
        rf.dlrt_(nn.Sequential(nn.Conv2d(16, 32, 3, groups=2)))
    with pytest.raises(ValueError, match=r"^where='nosuch': no layer of this model matches; its layers are 0, 1, 2"):
        rf.dlrt_(model, where="nosuch")
    with pytest.raises(ValueError, match=r"keep=True keeps the factors .* this model has none: prepare it with"):
        rf.fold_(model, keep=True)
    with pytest.raises(ValueError, match="rank must be"):
        rf.dlrt_(model, 0)
    with pytest.raises(ValueError, match="on the meta device, without values"):
        rf.dlrt_(nn.Sequential(nn.Linear(64, 64, device="meta")))
    with pytest.raises(ValueError, match=r"0 \(Linear 64×64\): .*NaN"):
        rf.dlrt_(nn.Sequential(broken()))


def broken() -> nn.Module:
    layer = nn.Linear(64, 64)
    nn.init.constant_(layer.weight, float("nan"))
    return layer


def test_an_optimizer_of_before_is_told_of():
    model = network()
    held = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"an optimizer built earlier .* after dlrt_"):
        rf.dlrt_(model)
    del held


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"integrator": "euler"}, "integrator must be one of"),
        ({"window": 0}, "window must be"),
        ({"tolerance": 1.0}, "tolerance, a share"),
        ({"budget": 2.0}, "budget, a share"),
        ({"groups": [nn.Parameter(torch.zeros(1))]}, "0.core is in none of the parameter groups"),
    ],
)
def test_settings_are_checked(how, match):
    with pytest.raises(ValueError, match=match):
        rf.Dlrt(rf.dlrt_(network()), torch.optim.SGD, lr=0.1, **how)


def test_closures_are_asked_for_and_a_plain_model_is_refused():
    with pytest.raises(ValueError, match=r"prepare it with rankfold\.dlrt_ first"):
        rf.Dlrt(network(), torch.optim.SGD, lr=0.1)
    optimizer = rf.Dlrt(rf.dlrt_(network()), torch.optim.SGD, lr=0.1, integrator="augmented")
    with pytest.raises(ValueError, match=r"step\(closure\)"):
        optimizer.step()


def test_a_gradient_that_is_not_finite_names_its_layer_and_changes_nothing():
    model = rf.dlrt_(network())
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    x, y = data()
    (F.cross_entropy(model(x), y) * float("inf")).backward()
    with pytest.raises(NonFiniteError, match=r"0: its gradient is not finite, so this step was not taken"):
        optimizer.step()
    after = model.state_dict()
    assert all(
        torch.equal(value, after[key]) for key, value in before.items() if "running" not in key and "num" not in key
    )


def test_schedulers_clipping_and_groups_work_as_with_any_optimizer():
    model = rf.dlrt_(network())
    cores = [layer.core for layer in model.modules() if isinstance(layer, DynamicLowRank)]
    others = [p for p in model.parameters() if all(p is not core for core in cores)]
    optimizer = rf.Dlrt(
        model, torch.optim.SGD, lr=0.1, groups=[{"params": cores}, {"params": others, "lr": 0.01}], window=3
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    x, y = data()
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        norm = optimizer.clip_grad_norm_(0.01)
        assert norm > 0.01
        assert optimizer.clip_grad_norm_(1.0) <= 0.01 * (1 + 1e-6)
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * 0.6545, 0.01 * 0.6545], rel=1e-3)


def test_clipping_knows_the_norm_of_the_projected_gradient():
    torch.manual_seed(0)
    model = rf.dlrt_(nn.Sequential(nn.Linear(9, 8, bias=False)).double(), 2, where="*")
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, integrator="parallel")
    layer, x = model[0], torch.randn(6, 9).double()
    dense = (layer.left @ layer.core @ layer.right).detach().requires_grad_()
    F.linear(x, dense).square().sum().backward()
    model(x).square().sum().backward()
    u, v, g = layer.left @ layer.left.T, layer.right.T @ layer.right, dense.grad
    assert float(optimizer.clip_grad_norm_(1e9)) == pytest.approx(float((u @ g + g @ v - u @ g @ v).norm()))


def test_copies_pickles_compilers_and_sites_meet_it():
    model = rf.dlrt_(network())
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1)
    x, y = data()
    F.cross_entropy(model(x), y).backward()
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(x), model(x))
    found = rf.sites(model)
    assert [site.name for site in found] == ["0", "4", "6"]
    assert found["0"].shape == (20, 27)
    assert "fold first" in found["0"].note
    assert torch.allclose(found["4"].matrix(model), rf.fold_(copy.deepcopy(model))[4].weight)
    assert optimizer.ranks == {"0": 10, "4": 12}


def test_half_precision_and_autocast():
    model = rf.dlrt_(network(dtype=torch.bfloat16), 4)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.05, window=4)
    losses = trained(model, optimizer, 24)
    assert losses[-1] < losses[0]
    assert model[0].core.dtype == torch.bfloat16
    model = rf.dlrt_(network(dtype=torch.float32), 4)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.05, window=4)
    losses = trained(model, optimizer, 24, half=True)
    assert losses[-1] < losses[0]


def test_nothing_of_the_size_of_the_weight_is_held_in_training():
    model = rf.dlrt_(nn.Sequential(nn.Linear(400, 300)), 5)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=1e-3, window=3)
    sizes = []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 400)).square().mean().backward()
        optimizer.step()
        held = [*model.parameters(), *model.buffers(), *(v for s in optimizer.state.values() for v in s.values())]
        held += [p.grad for p in model.parameters() if p.grad is not None]
        sizes.append(max(x.numel() for x in held if isinstance(x, torch.Tensor)))
    assert max(sizes) <= 400 * 10  # a basis of twice the rank


class Stop(Exception):
    pass


def test_fit_takes_it_and_resumes_to_the_bit_with_ranks_that_changed(tmp_path):
    x, y = data(256, torch.float32)
    recipe = rf.Recipe(epochs=3, batch_size=32, optimizer="adam", learning_rate=0.01, clip_norm=1.0)
    make = functools.partial(rf.Dlrt, window=6, tolerance=0.3)

    def prepared(rank: int) -> nn.Module:
        return rf.dlrt_(network(dtype=torch.float32), rank)

    def stop(now) -> None:
        if (now.epoch, now.batch) == (2, 3):
            raise Stop

    whole, broken, resumed = prepared(8), prepared(8), prepared(2)
    history = rf.fit(whole, (x, y), (x, y), recipe, optimizer=make)
    with pytest.raises(Stop):
        rf.fit(broken, (x, y), (x, y), recipe, optimizer=make, directory=tmp_path, progress=stop)
    again = rf.fit(resumed, (x, y), (x, y), recipe, optimizer=make, directory=tmp_path)
    assert again.resumed_from == 1
    assert again.best_epoch == history.best_epoch
    assert {name: value.shape for name, value in whole.state_dict().items()} != {
        name: value.shape for name, value in prepared(8).state_dict().items()
    }
    for (name, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    # the network that was validated is the one that is left: windows are closed before
    assert rf.evaluate(whole, (x, y)).accuracy == history.best.validation.accuracy
    with pytest.raises(TrainingError, match="average of weights of low rank"):
        rf.fit(prepared(4), (x, y), None, replace(recipe, ema=0.9), optimizer=make)


def test_a_square_weight_that_is_stored_transposed_comes_back_so():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(24, 24), nn.Tanh(), nn.Linear(24, 3)).double().eval()
    x = torch.randn(5, 24, dtype=torch.float64)
    expected, shape = model(x), model[0].weight.shape
    for keep in (False, True):
        low = rf.dlrt_(copy.deepcopy(model), 24, where="0")
        assert torch.allclose(low[0].weight, model[0].weight)
        folded = rf.fold_(low, keep=keep)
        assert torch.allclose(folded(x), expected)
        assert folded[0].weight.shape == shape


@pytest.mark.parametrize(("kind", "decay", "longer"), [("Adam", 0.0, 2.0), ("AdamW", 0.5, 2.0), ("SGD", 0.0, 1.0)])
def test_steps_of_a_core_are_longer_where_entries_move_by_the_rate(kind, decay, longer):
    """A core of 16 x 16 entries in a weight of 64 x 64: (64² / 16²)^¼ = 2; decay is not longer. Directions that come in
    lag behind by (1 - .9²) / (1 - .9) = 1.9 in the second step, where there is a mean of gradients."""
    torch.manual_seed(0)
    model = rf.dlrt_(nn.Sequential(nn.Linear(64, 64)), rank=8).double()
    known = {"lr": 1e-3, "weight_decay": decay}
    optimizer = rf.Dlrt(model, getattr(torch.optim, kind), tolerance=0.0, window=9, **known)
    F.mse_loss(model(torch.randn(32, 64).double()), torch.randn(32, 64).double()).backward()
    optimizer.step()  # opens a window
    assert model[0].core.shape == (16, 16)
    optimizer.zero_grad()
    F.mse_loss(model(torch.randn(32, 64).double()), torch.randn(32, 64).double()).backward()
    plain = nn.Parameter(model[0].core.detach().clone())
    plain.grad = model[0].core.grad.clone()
    inner = getattr(torch.optim, kind)([plain], **known)
    saved = optimizer.inner.state.get(model[0].core, {})
    inner.state[plain] = {key: value.clone() if torch.is_tensor(value) else value for key, value in saved.items()}
    before = plain.detach().clone()
    optimizer.step()
    inner.step()
    still = before * (1 - 1e-3 * decay)
    expected = longer * (plain.detach() - still)
    if kind != "SGD":
        expected[8:] *= 1.9
        expected[:8, 8:] *= 1.9
    torch.testing.assert_close(model[0].core.detach() - still, expected)


@pytest.mark.parametrize("rising", [False, True])
def test_within_a_budget_a_network_that_begins_small_is_never_large(rising):
    """At most twice as large as it began, inside a window; it had grown to full rank before its sizes fell."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, 30))
    rf.dlrt_(model, rank=8)
    layers = [module for module in model if isinstance(module, DynamicLowRank)]
    began = sum(layer.numbers for layer in layers)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=1e-3, window=5, reach=12, budget=0.3)
    budget = optimizer.cut.budget
    assert budget < began
    x, y, taken = torch.randn(64, 40), torch.randn(64, 30), []
    for step in range(100):
        if rising:
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 * (1 + step)
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()
        taken.append(sum(layer.numbers for layer in layers))
    assert max(taken) <= 2 * began
    assert rising or min(taken[-5:]) <= budget


def test_a_budget_waits_while_the_learning_rate_rises():
    torch.manual_seed(0)
    model = rf.dlrt_(nn.Sequential(nn.Linear(64, 64)), rank=16)
    optimizer = rf.Dlrt(model, torch.optim.Adam, lr=1e-3, window=4, budget=0.1, reach=2)
    inputs, met = torch.randn(32, 64), []
    for step in range(24):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 12)
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
        met.append(optimizer.met)
        if step == 10:  # as a checkpoint would
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert not any(met[:16])
    assert met[-1]
    assert optimizer.cut.closed == 3


def test_a_training_that_ends_before_its_budget_says_so_once():
    model = rf.dlrt_(nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32)), 16)
    data = (torch.randn(32, 24), torch.randint(2, (32,)))
    recipe = rf.Recipe(epochs=2, batch_size=16)
    history = rf.fit(model, data, data, recipe, optimizer=functools.partial(rf.Dlrt, budget=0.3, window=2, reach=4))
    assert "the budget was not reached" in history.warning
    assert "2 of reach=4 windows have closed" in history.warning
    rf.fold_(model)  # which warns no more
    model = rf.dlrt_(nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32)), 16)
    history = rf.fit(model, data, data, recipe, optimizer=functools.partial(rf.Dlrt, budget=0.3, window=2, reach=1))
    assert "budget" not in (history.warning or "")


def test_folding_inside_a_window_says_that_it_is_open():
    """Layers have more directions there than the budget allows."""
    model = rf.dlrt_(network(), 8)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.05, window=4, budget=0.4, reach=1)
    trained(model, optimizer, 6)
    assert not optimizer.met
    with pytest.warns(UserWarning, match=r"the last window is still open, .* call optimizer\.settle\(\)"):
        rf.fold_(copy.deepcopy(model), keep=True)
    optimizer.settle()
    assert optimizer.met
    rf.fold_(model, keep=True)  # without a warning: those are errors here


OTHERS = {
    "dlrt": None,
    "pufferfish": rf.Pufferfish(warmup=1),
    "sparse": rf.SparseFactors(),
    "lcnn": rf.LearningCompression(),
}


@pytest.mark.parametrize("way", OTHERS)
def test_an_optimizer_whose_layers_have_left_the_model_takes_no_step(way):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 18)), torch.randn(8, 24)
    if (known := OTHERS[way]) is None:
        optimizer = rf.Dlrt(rf.dlrt_(model), torch.optim.SGD, lr=0.1)
    else:
        optimizer = known.optimizer(known.prepare_(model), torch.optim.SGD, lr=0.1)
    rf.fold_(copy.deepcopy(model))  # of a copy: nothing has left this one
    model(x).square().mean().backward()
    optimizer.step()
    rf.fold_(model)
    before = copy.deepcopy(model.state_dict())
    model(x).square().mean().backward()
    with pytest.raises(
        ValueError, match=r"^0: the ordinary layer is in its place again \(fold_, merge_ or remove_\), "
    ):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["geolora", "debora"])
@pytest.mark.parametrize("leave_", [rf.adapt.merge_, rf.adapt.remove_])
def test_an_optimizer_of_an_adapter_that_was_taken_off_takes_no_step(kind, leave_):
    model = nn.Sequential(nn.Linear(24, 20))
    prepare_, make = (rf.geolora_, rf.GeoLora) if kind == "geolora" else (rf.debora_, rf.Debora)
    optimizer = make(prepare_(model, rank=2), torch.optim.SGD, lr=0.1)
    leave_(model)
    with pytest.raises(ValueError, match="the ordinary layer is in its place again"):
        optimizer.step()


def test_small_matrices_that_take_much_of_a_budget_are_named():
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

    with pytest.warns(
        UserWarning, match=r"^1,280 of the 2,612 parameters that budget=0\.1 allows are those of 4, dense "
    ):
        rf.Dlrt(rf.dlrt_(model()), torch.optim.SGD, lr=0.1, budget=0.1)
    with pytest.warns(UserWarning, match=r"where='\*' lets these have low rank too"):
        rf.Pufferfish(budget=0.1).prepare_(model())
    rf.Dlrt(rf.dlrt_(model()), torch.optim.SGD, lr=0.1, budget=0.5)  # a tenth of it: warnings are errors here
    rf.Dlrt(rf.dlrt_(model(), where="*"), torch.optim.SGD, lr=0.1, budget=0.1)


def test_what_takes_most_of_a_budget_and_has_no_low_rank_is_named():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.attention = nn.Embedding(100, 64), nn.MultiheadAttention(64, 4)
            self.after = nn.Linear(64, 64)

    with pytest.warns(UserWarning, match="are in no layer of low rank") as told:
        rf.Dlrt(rf.dlrt_(Reader()), torch.optim.SGD, lr=0.1, budget=0.9)
    (message,) = (str(each.message) for each in told)
    assert message.startswith("23,104 of the 24,480 parameters that budget=0.9 allows are in no layer of low rank")
    assert "attention.in_proj_weight (read directly by its MultiheadAttention" in message
    assert "table.weight (an embedding" in message
    assert message.endswith("choose further layers (where=)")
    with pytest.warns(UserWarning, match=r"most of them in 2\.weight;"):
        rf.Pufferfish(budget=0.7).prepare_(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), where="0")


def test_a_size_and_a_tolerance_are_not_given_at_once():
    with pytest.raises(ValueError, match=r"budget=0\.3 and tolerance=0\.1 are two ways to choose ranks: give one"):
        rf.Dlrt(rf.dlrt_(network()), torch.optim.SGD, lr=0.1, budget=0.3, tolerance=0.1)
    with pytest.raises(ValueError, match=r"params=300 and tolerance=0\.0 are two ways"):
        rf.GeoLora(rf.geolora_(network(), rank=1), torch.optim.SGD, lr=0.1, params=300, tolerance=0.0)


def test_factors_that_were_asked_for_and_never_trained_are_told():
    model = rf.dlrt_(network())
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.05, window=4, reach=3, factors=True)
    trained(model, optimizer, 9)
    optimizer.settle()
    assert optimizer.lacking() == ""  # the third window was closed here
    other = rf.dlrt_(network())
    optimizer = rf.Dlrt(other, torch.optim.SGD, lr=0.05, window=4, reach=3, factors=True)
    trained(other, optimizer, 8)
    with pytest.warns(
        UserWarning, match=r"factors=True asks for, has not begun, since 2 of reach=3 windows have closed"
    ):
        rf.fold_(other)
