"""The ways to low rank beside dynamical training: the law of each, and what all of them keep."""

import copy
import itertools
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from commands import succeeded
from digits import digits, trained
from torch import nn

import rankfold as rf
from rankfold.induce.ways import WAYS, settings_of, way_named
from rankfold.induce.ways.cuttlefish import settled
from rankfold.induce.ways.guide import alike, factor_, own
from rankfold.induce.ways.lcnn import cheapest
from rankfold.induce.ways.maestro import nested
from rankfold.induce.ways.sparse import away, sparsity
from rankfold.layers import Approached, InTraining, Phased, Scaled
from rankfold.linalg.allocation import least_tails
from rankfold.linalg.errors import NonFiniteError
from rankfold.pipeline import Tell, train
from rankfold.pipeline.trainings.config import parse, read
from rankfold.train import TrainingError

EAGER = {  # settings with which each is done after a few periods
    "cuttlefish": {"latest": 2},
    "lcnn": {"pull": 0.1},
    "pufferfish": {"warmup": 1},
    "frobenius": {},
    "sparse": {"reach": 2},
    "maestro": {"reach": 2},
}


def network(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, stride=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(20), nn.ReLU(),
        nn.Flatten(), nn.Linear(20 * 16, 24), nn.Tanh(), nn.Linear(24, 5),
    ).to(dtype)  # fmt: skip


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 8, 8, generator=g).double(), torch.randint(0, 5, (count,), generator=g)


def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int = 16) -> float:
    x, y = data()
    total = 0.0
    for start in range(0, len(x), batch):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[start : start + batch]), y[start : start + batch])
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    optimizer.settle()
    return total


# --- what all of them keep


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "fused SGD": (torch.optim.SGD, {"lr": 0.03, "momentum": 0.9, "fused": True}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_learns_within_its_budget_and_folds(name, kind):
    model = network()
    way = way_named(name, budget=0.3, **EAGER[name])
    dense = sum(p.numel() for p in model.parameters())
    before = model(data()[0])
    way.prepare_(model)
    if name not in ("frobenius", "lcnn"):  # those begin at low rank
        assert torch.allclose(model.eval()(data()[0]), copy.deepcopy(model)(data()[0]))
        assert torch.allclose(model.train()(data()[0]), before, atol=1e-10)
    optimizer = way.optimizer(model, OPTIMIZERS[kind][0], **OPTIMIZERS[kind][1])
    losses = [epoch(model, optimizer) for _ in range(8)]
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    assert optimizer.met
    expected = model.eval()(data()[0])
    ranks = {n: layer.rank for n, layer in own(model).items()}
    del optimizer
    small = rf.fold_(copy.deepcopy(model), keep=True)
    assert sum(p.numel() for p in small.parameters()) <= 0.3 * dense
    assert torch.allclose(small(data()[0]), expected, atol=1e-8)
    folded = rf.fold_(model)
    assert torch.allclose(folded(data()[0]), expected, atol=1e-8)
    assert not any(isinstance(module, InTraining) for module in folded.modules())
    for n, rank in ranks.items():
        weight = folded.get_submodule(n).weight.detach().flatten(1)
        assert rf.spectrum(weight).numerical_rank(1e-10) <= rank


@pytest.mark.parametrize("name", WAYS)
def test_a_way_is_resumed_in_its_phase_to_the_bit(name):
    """Saved after each epoch and taken up by a network that was just prepared, whatever its phase then."""
    way = way_named(name, budget=0.3, **EAGER[name])
    straight, kept = way.prepare_(network()), []
    optimizer = way.optimizer(straight, torch.optim.Adam, lr=0.01)
    for _ in range(4):
        epoch(straight, optimizer)
        kept.append(copy.deepcopy((straight.state_dict(), optimizer.state_dict())))
    for model_state, state in kept[:3]:
        model = way.prepare_(network())
        again = way.optimizer(model, torch.optim.Adam, lr=0.01)
        model.load_state_dict(model_state)
        again.load_state_dict(state)
        for _ in range(4 - again.periods):
            epoch(model, again)
        assert all(torch.equal(v, kept[-1][0][n]) for n, v in model.state_dict().items())
    other = nn.Sequential(*network(), nn.Linear(5, 5).double())
    with pytest.raises(RuntimeError):
        way.prepare_(other).load_state_dict({n.replace("4.", "9."): v for n, v in kept[0][0].items()})


@pytest.mark.parametrize("name", WAYS)
def test_from_the_command_line_killed_and_resumed(name, tmp_path):
    said = ", ".join(f"{key}: {value}" for key, value in (EAGER[name] | {"budget": 0.4, "name": name}).items())
    config = tmp_path / "run.yaml"
    config.write_text(f"model: digits-cnn\nway: {{{said}}}\nepochs: 3\nbatch_size: 128\nthreads: 1\n")
    whole = succeeded("train", config, "-o", tmp_path / "whole")
    assert whole["ranks"]
    assert whole["trained_params"] <= 0.4 * whole["params"]
    cut = tmp_path / "cut"
    asked = parse(read(config) | {"out": str(cut)})

    def stop(what, done, total):
        if what == "training" and done * 3 > 2 * total - 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, tell=Tell(stop))
    assert train(asked).ranks == whole["ranks"]
    first, second = (tmp_path / place / "model.safetensors" for place in ("whole", "cut"))
    assert first.read_bytes() == second.read_bytes()


def test_ways_are_named_and_refused_in_words():
    for name, kind in WAYS.items():
        way = way_named(name)
        assert way_named(**settings_of(way)) == way
        assert kind.name == name
        for setting in fields(way):
            wrong = "nonsense" if setting.name == "penalty" else -1.0
            with pytest.raises(ValueError, match=f"{kind.__name__}: {setting.name} must be"):
                kind(**{setting.name: wrong})
    with pytest.raises(ValueError, match="did you mean cuttlefish"):
        way_named("cuttelfish")
    with pytest.raises(ValueError, match="did you mean budget"):
        way_named("lcnn", budjet=0.1)
    with pytest.raises(ValueError, match="no setting kind; known: budget, every, pull, growth, price"):
        way_named("lcnn", kind=2)
    assert way_named("lcnn", pull="1e-4") == rf.LearningCompression(pull=1e-4)  # as YAML reads it
    for wrong, said in (("low", "unable to parse string as a number, got 'low'"), (True, "cannot be true")):
        with pytest.raises(ValueError, match=f"lcnn: pull.*{said}"):
            way_named("lcnn", pull=wrong)
    with pytest.raises(ValueError, match="prepare_ first"):
        rf.Maestro().optimizer(network())
    with pytest.raises(ValueError, match="Allow at least budget="):
        rf.Cuttlefish(budget=0.01).prepare_(network())
    model = rf.Pufferfish().prepare_(trained())
    with pytest.raises(TrainingError, match="ema"):
        rf.fit(model, digits().train, None, rf.Recipe(epochs=1, ema=0.9), optimizer=rf.Pufferfish().optimizer)


def test_a_step_that_would_spoil_the_weights_is_not_taken():
    model = rf.Maestro().prepare_(network())
    optimizer = rf.Maestro().optimizer(model, torch.optim.SGD, lr=0.1)
    before = copy.deepcopy(model.state_dict())
    (F.cross_entropy(model(data()[0]), data()[1]) * float("inf")).backward()
    with pytest.raises(NonFiniteError, match="0: its gradient is not finite"):
        optimizer.step()
    assert all(
        torch.equal(v, before[n]) for n, v in model.state_dict().items() if "running" not in n and "num" not in n
    )


# --- Pufferfish, Frobenius decay


def test_pufferfish_is_dense_until_it_is_cut_at_the_best_of_its_rank():
    model, twin = network(), network()
    way = rf.Pufferfish(rank=0.25, warmup=2)
    way.prepare_(model)
    optimizer, plain = way.optimizer(model, torch.optim.SGD, lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
    plain.settle = lambda: None
    for done in range(2):
        assert not optimizer.met
        epoch(model, optimizer), epoch(twin, plain)
        assert done == 1 or all(layer.dense for layer in own(model).values())
    for name, layer in own(model).items():
        dense = twin.get_submodule(name).weight.detach().flatten(1)
        u, s, v = torch.linalg.svd(dense, full_matrices=False)
        rank = min(dense.shape) // 4
        assert layer.rank == rank
        assert torch.allclose(layer.matrix(), (u[:, :rank] * s[:rank]) @ v[:rank], atol=1e-9)
        assert torch.allclose(layer.left.norm(), layer.right.norm())
    assert optimizer.met


def test_frobenius_decay_is_that_of_the_product():
    layer = rf.FrobeniusDecay(rank=0.5, decay=0.3).prepare_(network())[4]
    left, right = (p.detach().clone().requires_grad_() for p in (layer.left, layer.right))
    (0.3 / 2 * (left @ right).square().sum()).backward()
    layer.left.grad, layer.right.grad = torch.zeros_like(layer.left), torch.zeros_like(layer.right)
    rf.FrobeniusDecay(decay=0.3).penalise(layer, None)
    assert torch.allclose(layer.left.grad, left.grad, atol=1e-14)
    assert torch.allclose(layer.right.grad, right.grad, atol=1e-14)


def test_the_optimizers_own_decay_leaves_such_layers_alone():
    way = rf.FrobeniusDecay(decay=0.0)
    model = way.prepare_(network())
    groups = [{"params": list(model.parameters()), "weight_decay": 0.5}]
    optimizer = way.optimizer(model, torch.optim.SGD, groups=groups, lr=0.1)
    theirs = {id(p) for layer in own(model).values() for n, p in layer.named_parameters() if n != "bias"}
    for group in optimizer.param_groups:
        inside = {id(p) for p in group["params"]}
        assert group["weight_decay"] == (0.0 if inside <= theirs else 0.5)
        assert inside <= theirs or not inside & theirs
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_one_share_for_all_layers_is_the_largest_that_fits():
    layers = [Phased(nn.Linear(n, m), torch.zeros(m, n)) for m, n in ((20, 27), (24, 320), (50, 18))]
    for room in (500, 2000, 5000, 10**6):
        ranks = alike(layers, room)
        assert sum(r * sum(x.shape) for r, x in zip(ranks, layers, strict=True)) <= max(room, 400)
        shares = [r / min(x.shape) for r, x in zip(ranks, layers, strict=True)]
        assert max(shares) - min(shares) < 1 / 18 + 1e-9
    assert alike(layers, 10**6) == [20, 24, 18]


# --- Cuttlefish


def test_stable_ranks_come_to_rest_by_the_smoothed_mean_of_their_moves():
    still, moving = torch.full((9,), 4.0), torch.arange(9.0)
    assert settled(torch.stack([still] * 8, 1).double(), 0.33, 5)
    eight = torch.stack([still] * 7 + [moving], 1).double()
    assert not settled(eight, 0.15, 5)  # one layer left: five times as much is allowed, and it moves by more
    assert settled(eight, 0.33, 5)  # 5 · 0.33 is more than 1 a period
    assert not settled(eight[:5], 9.0, 5)  # too early to tell
    seven = torch.stack([moving] * 7, 1).double()
    assert not settled(seven, 0.5, 5)
    assert settled(seven[:, :6], 0.5, 5)  # six: 2.5 times as much


def test_cuttlefish_switches_once_at_the_scaled_stable_rank():
    model = network()
    way = rf.Cuttlefish(threshold=0.0, latest=3, decay=0.0)
    way.prepare_(model)
    optimizer = way.optimizer(model, torch.optim.SGD, lr=0.05)

    def stable(weight):
        values = torch.linalg.svdvals(weight)
        return float((values / values[0]).square().sum())

    start = {name: stable(layer.left.detach()) for name, layer in own(model).items()}
    for _ in range(2):
        epoch(model, optimizer)
    assert all(layer.dense for layer in own(model).values())
    seen = {}
    settle, before = optimizer.settle, seen

    def watched():
        before.update({name: layer.left.detach().clone() for name, layer in own(model).items()})
        settle()

    optimizer.settle = watched
    epoch(model, optimizer)
    for name, layer in own(model).items():
        full = min(layer.shape)
        rank = min(full, -int(-(stable(before[name]) * full / start[name]) // 1))
        if rank * sum(layer.shape) < layer.shape[0] * layer.shape[1]:
            assert layer.rank == rank
            best = torch.linalg.svdvals(before[name])[rank:].norm()
            assert torch.allclose((layer.matrix() - before[name]).norm(), best, atol=1e-9)
        else:
            assert layer.dense
    ranks = {name: layer.rank for name, layer in own(model).items()}
    for _ in range(3):
        epoch(model, optimizer)
    assert {name: layer.rank for name, layer in own(model).items()} == ranks


# --- learning-compression


def brute(spectra, prices, budget):
    tails = [s.square().flip(0).cumsum(0).flip(0) for s in spectra]
    found = []
    for ranks in itertools.product(*(range(1, len(s) + 1) for s in spectra)):
        if sum(r * p for r, p in zip(ranks, prices, strict=True)) <= budget:
            found.append(sum(float(t[r]) if r < len(t) else 0.0 for t, r in zip(tails, ranks, strict=True)))
    return min(found)


@pytest.mark.parametrize("seed", range(12))
def test_the_compression_step_within_a_budget_is_the_best_there_is(seed):
    g = torch.Generator().manual_seed(seed)
    spectra = [torch.rand(k, generator=g).double().sort(descending=True).values for k in (5, 7, 6)]
    prices = [int(p) for p in torch.randint(7, 60, (3,), generator=g)]
    for share in (0.3, 0.55, 0.8):
        budget = max(sum(prices), int(share * sum(p * len(s) for p, s in zip(prices, spectra, strict=True))))
        ranks = least_tails(spectra, prices, budget)
        assert sum(r * p for r, p in zip(ranks, prices, strict=True)) <= budget
        lost = sum(float(s[r:].square().sum()) for s, r in zip(spectra, ranks, strict=True))
        assert lost == pytest.approx(brute(spectra, prices, budget), abs=1e-12)
    with pytest.raises(ValueError, match="takes"):
        least_tails(spectra, prices, sum(prices) - 1)


def test_directions_by_energy_for_the_price_alone_are_not_the_best():
    """What the oracle above is worth: the greedy choice leaves room that a better one uses."""
    spectra = [torch.tensor([3.0, 2.0]).double(), torch.tensor([3.0, 1.2, 1.1, 1.0]).double()]
    prices, budget = [30, 10], 70
    from rankfold.linalg.allocation import _greedy

    squares = [s.square().numpy() for s in spectra]
    greedy, _ = _greedy(squares, prices, budget - 1)
    lost = sum(float(s[r:].square().sum()) for s, r in zip(spectra, greedy, strict=True))
    best = least_tails(spectra, prices, budget - 1)
    assert sum(float(s[r:].square().sum()) for s, r in zip(spectra, best, strict=True)) <= lost
    assert brute(spectra, prices, budget - 1) == pytest.approx(
        sum(float(s[r:].square().sum()) for s, r in zip(spectra, best, strict=True))
    )


def test_without_a_budget_each_layer_has_the_rank_of_least_price_and_loss():
    values = torch.tensor([3.0, 2.0, 0.5, 0.1]).double()
    for price, pull in itertools.product((1e-3, 0.1, 1.0, 9.0), (0.1, 1.0)):
        costs = [price * r + pull / 2 * float(values[r:].square().sum()) for r in range(1, 5)]
        assert cheapest(values, price, pull) == 1 + costs.index(min(costs))


def test_the_learning_step_is_drawn_to_the_compressed_weight_ever_more():
    model = network()
    way = rf.LearningCompression(budget=0.3, pull=0.2, growth=1.5)
    way.prepare_(model)
    optimizer = way.optimizer(model, torch.optim.SGD, lr=0.05)
    layer = own(model)["4"]
    layer.dense.grad = torch.zeros_like(layer.dense)
    with torch.no_grad():
        way.penalise(layer, optimizer)
    assert torch.allclose(layer.dense.grad, 0.2 * (layer.dense - layer.left @ layer.right))
    gaps = []
    for _ in range(12):
        epoch(model, optimizer)
        dense = layer.dense.detach()
        gaps.append(float((dense - layer.left @ layer.right).norm() / dense.norm()))
    assert gaps[-1] < 0.2 * gaps[0]
    x = data()[0]
    model.eval()
    judged = model(x)
    assert torch.allclose(judged, rf.fold_(copy.deepcopy(model))(x), atol=1e-10)  # by what remains, not by W


# --- sparse singular values


@pytest.mark.parametrize("penalty", ["hoyer", "nuclear"])
def test_the_penalty_on_singular_values_has_the_gradient_of_its_formula(penalty):
    s = torch.tensor([2.0, -0.5, 0.1]).double().requires_grad_()
    value = s.abs().sum() if penalty == "nuclear" else s.abs().sum() / s.norm()
    value.backward()
    assert torch.allclose(sparsity(s.detach(), penalty), s.grad, atol=1e-14)
    basis = torch.randn(7, 3).double().requires_grad_()
    (basis.mT @ basis - torch.eye(3).double()).square().sum().backward()
    assert torch.allclose(away(basis.detach()), basis.grad, atol=1e-12)


def test_hoyer_leaves_the_size_alone_and_nuclear_does_not():
    s = torch.tensor([2.0, 0.5, 0.1]).double()
    assert float(sparsity(s, "hoyer") @ s) == pytest.approx(0.0, abs=1e-14)  # no pull along s itself
    assert float(sparsity(s, "nuclear") @ s) == pytest.approx(2.6)


def test_sparse_factors_begin_as_the_singular_value_decomposition_and_lose_the_least():
    dense = network()
    model = rf.SparseFactors(tolerance=0.3).prepare_(network())
    layer = model[4]
    assert isinstance(layer, Scaled)
    weight = dense[4].weight.detach()
    assert torch.allclose(layer.scale, torch.linalg.svdvals(weight))
    assert torch.allclose(layer.matrix(), weight, atol=1e-12)
    way = rf.SparseFactors(tolerance=0.3)
    optimizer = way.optimizer(model, torch.optim.SGD, lr=0.1)
    values = layer.scale.detach().clone()
    optimizer.settle()
    rank = next(r for r in range(1, 25) if values[r:].norm() <= 0.3 * values.norm())
    assert layer.rank == rank
    assert torch.allclose((layer.matrix() - weight).norm(), values[rank:].norm(), atol=1e-10)


# --- ordered dropout


def test_ordered_dropout_finds_the_singular_directions_in_their_order():
    """Of a linear map, inputs without correlation: cut at any rank, it is the best there is at that rank."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(k, 4).double())[0] for k in (18, 16))
    target = (u * torch.tensor([4.0, 2.5, 1.5, 0.8]).double()) @ v.T
    model = nn.Sequential(nn.Linear(16, 18, bias=False)).double()
    way = rf.Maestro(rank=0.25, tolerance=0.0, every=10**9)
    model[0].weight.data.mul_(0.5)
    way.prepare_(model)
    layer = model[0]
    optimizer = way.optimizer(model, torch.optim.Adam, lr=0.02)
    x = torch.eye(16).double()
    for step in range(3000):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 3000)
        optimizer.zero_grad()
        (model(x) - target.T).square().sum().backward()
        optimizer.step()
    tails = torch.linalg.svdvals(target)
    for rank in range(1, 5):
        cut = layer.left.detach()[:, :rank] @ layer.right.detach()[:rank]
        best = float(tails[rank:].norm())
        assert float((cut - target).norm()) < 1.05 * best + 0.02
    shuffled = layer.left.detach()[:, 1:2] @ layer.right.detach()[1:2]
    assert float((shuffled - target).norm()) > 1.3 * float(tails[1:].norm())  # another order is worse


def test_one_layer_at_a_time_drops_its_last_directions_in_training_alone():
    model = rf.Maestro(seed=3).prepare_(network())
    way = rf.Maestro(seed=3)
    optimizer = way.optimizer(model, torch.optim.SGD, lr=0.0)
    seen = set()
    for _ in range(40):
        active = [layer.active for layer in own(model).values()]
        assert sum(a is not None for a in active) == 1
        seen.add(tuple(active))
        layer = next(x for x in own(model).values() if x.active is not None)
        parts = layer.factors()
        assert parts[0].shape[0] == layer.active
        assert layer.eval().factors()[0].shape[0] == layer.rank
        layer.train()
        epoch_loss = F.cross_entropy(model(data()[0]), data()[1])
        optimizer.zero_grad()
        epoch_loss.backward()
        optimizer.step()
    assert len(seen) > 15


def test_the_nested_lasso_has_the_gradient_of_its_formula():
    columns = torch.randn(6, 4).double().requires_grad_()
    sum(columns[:, b:].norm() for b in range(4)).backward()
    assert torch.allclose(nested(columns.detach()), columns.grad, atol=1e-12)


def test_what_maestro_leaves_can_be_sliced():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    way = rf.Maestro(budget=0.6, reach=1)
    way.prepare_(model)
    rf.fit(model, digits().train, None, rf.Recipe(epochs=3, batch_size=32, learning_rate=0.05), optimizer=way.optimizer)
    small = rf.fold_(model, keep=True).eval()
    x, y = digits().test.normalize(digits().test.inputs), digits().test.labels
    rank, right = small[1].rank, []
    down, up = small[1].down.weight.detach().clone(), small[1].up.weight.detach().clone()
    for order in (range(rank), reversed(range(rank))):
        kept = list(order)[: rank // 2]
        with torch.no_grad():
            small[1].down.weight.zero_()[kept] = down[kept]
            small[1].up.weight.copy_(up)
            right.append(float((small(x).argmax(1) == y).float().mean()))
    assert right[0] > right[1] + 0.2  # the first half of the directions, and the last


# --- layers


@pytest.mark.parametrize("kind", [Phased, Scaled, Approached])
def test_layers_of_a_way_stand_for_the_ordinary_one(kind):
    dense = network()
    conv = copy.deepcopy(dense[0])
    matrix = conv.weight.detach().flatten(1)
    layer = kind(copy.deepcopy(conv), matrix.clone())
    x = data(4)[0]
    assert torch.allclose(layer.train()(x), dense[0](x))
    assert layer.weight.shape == conv.weight.shape
    if kind is Approached:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        layer.draw_to_(u[:, :3] * s[:3], v[:3])
        layer.eval()
    else:
        factor_(layer, 3)
    assert torch.allclose(layer(x), F.conv2d(*_padded(conv, x), layer.weight, conv.bias, stride=2), atol=1e-10)
    twin = kind(copy.deepcopy(conv), torch.randn_like(matrix))
    twin.load_state_dict(layer.state_dict())
    twin.eval(), layer.eval()
    assert torch.equal(twin(x), layer(x))
    assert "fold" in rf.sites(nn.Sequential(layer, nn.Linear(3, 3)))["0"].note


def _padded(conv, x):
    return (F.pad(x, conv._reversed_padding_repeated_twice, mode="reflect"),)
