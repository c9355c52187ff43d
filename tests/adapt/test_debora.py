"""dEBORA: the budget at every step, the nuclear ball as oracle, atoms that are dropped, adapters that PEFT reads."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.adapt import merge_, remove_, save_adapter, updates
from rankfold.adapt.bilevel import Debora

RADIUS = 8.0


class Two(nn.Module):
    """Two weights that can be read at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 12, bias=False), nn.Linear(8, 9, bias=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        return tuple(layer(torch.eye(layer.in_features, dtype=torch.float64)).T for layer in (self.a, self.b))


def shrunk(targets: list[Tensor], radius: float) -> list[Tensor]:
    """Singular values of the nearest matrices within Σ‖·‖_* ≤ radius: one threshold for all, by bisection."""
    spectra = [torch.linalg.svdvals(target) for target in targets]
    low, high = 0.0, max(float(values.max()) for values in spectra)
    for _ in range(200):
        middle = (low + high) / 2
        size = sum(float((values - middle).clamp_min(0).sum()) for values in spectra)
        low, high = (middle, high) if size > radius else (low, middle)
    return [(values - high).clamp_min(0) for values in spectra]


def problem(seed: int, frame: str = "oblique", rank: int = 6, radius: float = RADIUS):
    """A model, its optimizer, a closure of ½Σ‖W − A‖², and the singular values that the updates must get."""
    torch.manual_seed(seed)
    model = Two().double()
    targets = [torch.randn(12, 10, dtype=torch.float64), 1.5 * torch.randn(9, 8, dtype=torch.float64)]
    wanted = shrunk([a - w.detach() for a, w in zip(targets, (model.a.weight, model.b.weight))], radius)
    rf.debora_(model, rank, radius, frame=frame)
    optimizer = Debora(model, torch.optim.SGD, lr=0.2, scaled=True)

    def closure() -> float:
        optimizer.zero_grad()
        loss = sum(0.5 * (y - a).square().sum() for y, a in zip(model(), targets))
        loss.backward()
        return float(loss.detach())

    return model, optimizer, closure, wanted


@pytest.mark.parametrize("frame", ["oblique", "stiefel"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_nuclear_ball(frame, seed):
    model, optimizer, closure, wanted = problem(seed, frame)
    for step in range(3000):
        optimizer.step(closure)
        assert float(optimizer.gains.sum()) <= RADIUS * (1 + 1e-12)
        assert float(optimizer.gains.min()) >= 0
        if step % 20 == 19:
            found = optimizer.certify(closure, renew=True)
            if found.gap < 1e-6:
                break
    assert found.gap < 1e-6
    for layer, values in zip(updates(model).values(), wanted):
        got = layer.spectrum().values
        rank = int((values > 1e-9).sum())
        assert int((got > 1e-6).sum()) == rank
        torch.testing.assert_close(got[:rank], values[:rank], rtol=0, atol=1e-3)
    assert found.note.startswith(
        "the gains add up to the whole radius: a radius larger by one would lower the loss by about "
    )


def test_the_opposite_sign_is_rejected(monkeypatch):
    """The printed hypergradient of the paper is minus the partial derivative: with it nothing would be learnt."""
    _, optimizer, closure, _ = problem(2)
    monkeypatch.setattr(Debora, "_gradient", lambda self, real=Debora._gradient: -real(self))
    monkeypatch.setattr(Debora, "_turned", lambda self, s, gradient: gradient)
    for _ in range(100):
        optimizer.step(closure)
    assert optimizer.certify(closure).gap > 1


def test_a_radius_that_binds_nothing_is_told():
    _, optimizer, closure, _ = problem(2, radius=500.0, rank=8)
    for _ in range(100):
        optimizer.step(closure)
    note = optimizer.certify(closure).note
    share = float(optimizer.gains.sum()) / 500
    assert note == f"the gains add up to {share:.0%} of the radius: if that stays so, the radius limits nothing"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(2, 6, 3, stride=2, padding=1), nn.Linear(96, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(torch.relu(self.conv(x)).flatten(1))))


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


def samples(count: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    means = torch.randn(3, 2, 8, 8, generator=generator)
    return means[labels] + 0.5 * torch.randn(count, 2, 8, 8, generator=generator), labels


def trained(steps: int = 40, frame: str = "oblique", start: bool = True, radius: float = 3.0):
    model, (x, y) = network(), samples()
    ranks = {"conv": 4, "fc": 4, "head": 3}
    rf.debora_(model, ranks, radius, frame=frame, data=(x, y) if start else None,
               generator=torch.Generator().manual_seed(0))  # fmt: skip
    optimizer = rf.Debora(model, torch.optim.Adam, lr=1e-2)
    for step in range(steps):
        part = slice(32 * (step % 3), 32 * (step % 3 + 1))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        optimizer.step()
        assert float(optimizer.gains.sum()) <= radius * (1 + 1e-5)
    return model, optimizer


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("frame", ["oblique", "stiefel"])
def test_it_begins_as_nothing_learns_and_keeps_its_frame(frame, start):
    x, y = samples()
    before = network()
    model, _ = trained(0, frame, start)
    assert torch.equal(model(x), before(x))
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {
        "left", "gains", "right"
    }  # fmt: skip
    model, optimizer = trained(120, frame, start)
    loss = nn.functional.cross_entropy(model(x), y)
    assert float(loss.detach()) < 0.7 * float(nn.functional.cross_entropy(before(x), y).detach())
    for layer in optimizer.layers.values():
        left, right = layer.left.T @ layer.left, layer.right @ layer.right.T
        for gram in (left, right):
            wanted = torch.ones(layer.rank) if frame == "oblique" else torch.eye(layer.rank)
            torch.testing.assert_close(gram.diagonal() if frame == "oblique" else gram, wanted, rtol=0, atol=1e-5)
    remove_(model)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_atoms_without_weight_are_gone_and_nothing_changes():
    model, optimizer = trained(30)
    x, y = samples()
    with torch.no_grad():
        optimizer.layers["fc"].gains.copy_(torch.tensor([0.2, 0.0, 0.0, 0.1]))
    expected, before = model(x).detach(), optimizer.ranks
    moment = optimizer.inner.state[optimizer.layers["fc"].left]["exp_avg"][:, [0, 3]].clone()
    optimizer.prune_()
    torch.testing.assert_close(model(x), expected)
    assert optimizer.layers["fc"].rank == 2
    assert {name: layer.rank for name, layer in optimizer.layers.items()} == before == optimizer.ranks
    assert torch.equal(optimizer.inner.state[optimizer.layers["fc"].left]["exp_avg"], moment)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_levels_move_their_own_part_alone():
    x, y = samples()
    for level, moves in (("lower", {"left", "right"}), ("upper", {"gains"})):
        model, optimizer = trained(10)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step(level=level)
        after = model.state_dict()  # an atom without weight may be turned round by the upper level
        moved = {n.rpartition(".")[2] for n, v in after.items() if not torch.equal(v.abs(), before[n].abs())}
        assert moved == moves


def test_it_goes_on_to_the_bit_after_atoms_have_gone():
    x, y = samples()

    def goes_on(model, optimizer):
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model.state_dict()

    model, optimizer = trained(30)
    with torch.no_grad():
        optimizer.layers["fc"].gains.copy_(torch.tensor([0.0, 0.2, 0.1, 0.1]))
    optimizer.prune_()
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    first = goes_on(model, optimizer)
    again, fresh = trained(0)
    again.load_state_dict(kept[0])
    fresh.load_state_dict(kept[1])
    second = goes_on(again, fresh)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_saved_and_merged_is_what_was_trained(tmp_path):
    peft = pytest.importorskip("peft")
    model, optimizer = trained(40)
    x, _ = samples()
    expected = model(x).detach()
    save_adapter(model, tmp_path, tolerance=1e-6)
    read = peft.PeftModel.from_pretrained(network(), tmp_path).eval()
    torch.testing.assert_close(read(x), expected, rtol=1e-4, atol=1e-4)
    assert optimizer.layers["conv"].kernel == (2, 3, 3)
    merge_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_what_is_refused():
    with pytest.raises(ValueError, match="radius must be positive"):
        rf.debora_(network(), 2, 0.0)
    with pytest.raises(ValueError, match="frame must be one of oblique, stiefel"):
        rf.debora_(network(), 2, frame="round")
    with pytest.raises(ValueError, match=r"prepare it with rankfold\.debora_ first"):
        rf.Debora(network())
    model, optimizer = trained(3)
    with pytest.raises(ValueError, match="already has adapters"):
        rf.debora_(model, 2)
    optimizer.layers["fc"].left.grad = torch.full_like(optimizer.layers["fc"].left, math.nan)
    with pytest.raises(ValueError, match="fc: its gradient is not finite"):
        optimizer.step()
