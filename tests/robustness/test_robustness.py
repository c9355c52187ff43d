"""Robustness: what is exact of an attack on linear networks, where inputs stay, and what each layer amplifies."""

import copy
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch
from commands import failed, rankfold, succeeded
from digits import digits, trained, write_weights
from torch import nn
from torch.nn.utils import prune

import rankfold as rf
from rankfold.cli import loading
from rankfold.pipeline.robustness import attack
from rankfold.pipeline.robustness.attack import Ball
from rankfold.pipeline.robustness.layers import amplifications
from rankfold.zoo import Split

DUAL = {"linf": 1, "l2": 2}


def linear(classes: int = 2, inputs: int = 12, seed: int = 0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Without a bias, and samples that it answers rightly four times in five."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs, classes, bias=False)).double().eval()
    x = torch.randn(200, inputs, dtype=torch.float64)
    y = model(x).argmax(1)
    y[::5] = (y[::5] + 1) % classes
    return model, x, y


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("radius", [0.05, 0.2, 0.6])
def test_of_two_classes_and_a_linear_network_the_attack_finds_exactly_what_can_be_lost(norm, radius):
    model, x, y = linear()
    weight = model[0].weight.detach()
    normal = weight[y] - weight[1 - y]
    size = normal.abs().sum(1) if norm == "linf" else normal.norm(dim=1)
    stands = (normal * x).sum(1) > radius * size  # Hölder: no change of this norm does more
    found = rf.robustness(model, (x, y), **{"linf": [], "l2": [], norm: [radius]}, bounds=(-9, 9))
    assert found.clean == pytest.approx(0.8)
    assert found.accuracy(norm, radius) == pytest.approx(float(stands.double().mean()))
    assert 0 < found.accuracy(norm, radius) < 0.8


class Shell(nn.Module):
    """Wrong between 0.04 and 0.06 alone, while its loss rises with the input everywhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wrong = ((x > 0.04) & (x < 0.06)).all(1, keepdim=True)
        score = torch.where(wrong, -1.0, 1.0) - 0.01 * x.mean(1, keepdim=True)
        return torch.cat([score, -score], 1)


def test_every_point_that_is_passed_counts_not_the_last_alone():
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    found = rf.robustness(Shell(), (x, y), linf=[0.02, 0.2], l2=[], bounds=(-1, 1), restarts=0)
    assert float(Shell()(torch.full((1, 2), 0.2)).argmax()) == 0  # where the ascent ends it is right again
    assert [found.clean, *(a.accuracy for a in found.attacks)] == [1.0, 1.0, 0.0]


def test_what_is_lost_to_a_smaller_radius_is_lost_to_a_larger_one():
    found = rf.robustness(trained(), digits().test, linf=[0.3, 0.02, 0.1], l2=[2.0, 0.5], samples=200)
    for norm in ("linf", "l2"):
        held = [attack.accuracy for attack in found.attacks if attack.norm == norm]
        assert [found.clean, *held] == sorted([found.clean, *held], reverse=True)
    assert found.accuracy("linf", 0.3) < 0.2 < found.accuracy("linf", 0.02)
    with pytest.raises(KeyError, match="no attack in the norm l2 with radius 7"):
        found.accuracy("l2", 7)


def test_inputs_stay_within_the_pixels_and_the_ball_in_units_of_pixels():
    model, part, seen = trained(), digits().test, []
    with torch.no_grad():
        part = replace(part, labels=model(part.normalize(part.inputs)).argmax(1))  # all right, and all attacked
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    rf.robustness(model, part, linf=[0.1], l2=[], samples=None, batch_size=len(part), restarts=0)
    handle.remove()
    origin = part.inputs.float() / part.scale
    raw = [x * part.std.view(1, 1, 1, 1) + part.mean.view(1, 1, 1, 1) for x in seen if len(x) == len(part)]
    assert max(float((x - origin).abs().max()) for x in raw) == pytest.approx(0.1, abs=1e-5)
    assert min(float(x.min()) for x in raw) > -1e-5
    assert max(float(x.max()) for x in raw) < 1 + 1e-5


def test_pixels_may_be_told_of_data_that_are_normalised_already():
    model, part = trained(), digits().test
    x = part.normalize(part.inputs)
    how = {"linf": [0.05], "l2": [0.7], "samples": None, "restarts": 0}
    told = rf.robustness(model, (x, part.labels), pixels=(part.mean, part.std), **how)
    known = rf.robustness(model, part, **how)
    assert (told.attacks, told.unit) == (known.attacks, known.unit)
    as_they_are = rf.robustness(model, (x, part.labels), **how)
    assert as_they_are.unit == "of the inputs"
    assert as_they_are.accuracy("linf", 0.05) > known.accuracy("linf", 0.05)  # a smaller ball: 0.05 of a deviation


def test_batches_of_another_size_give_the_same(monkeypatch):
    how = {"samples": None, "restarts": 0, "linf": [0.05], "l2": [0.5]}
    small, large = (rf.robustness(trained(), digits().validation, batch_size=size, **how) for size in (7, 500))
    assert small.to_dict() == large.to_dict()


def test_a_random_start_only_ever_lowers_what_is_held():
    once, more = (
        rf.robustness(trained(), digits().test, linf=[0.08], l2=[0.8], samples=150, restarts=count) for count in (0, 3)
    )
    assert all(b.accuracy <= a.accuracy for a, b in zip(once.attacks, more.attacks, strict=True))
    again = rf.robustness(trained(), digits().test, linf=[0.08], l2=[0.8], samples=150, restarts=3)
    assert again == more


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_draws_and_projections_lie_in_the_ball(norm):
    ball, likes = Ball(norm, 0.5), [torch.zeros(40, 3, 4), torch.zeros(40, 2)]
    generator = torch.Generator().manual_seed(0)
    far = [torch.randn(x.shape, generator=generator) for x in likes]
    for parts in (ball.drawn(likes, generator), ball.within(far)):
        flat = torch.cat([part.flatten(1) for part in parts], 1)
        sizes = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
        assert float(sizes.max()) <= 0.5 + 1e-6
        assert float(sizes.max()) > 0.4
    near = [0.01 * part for part in far]
    assert all(torch.equal(a, b) for a, b in zip(ball.within(near), near, strict=True))


class Pixels(nn.Module):
    """Two classes for each pixel: whether it is above its own threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-self.scale * x, self.scale * x], 1)


def test_of_pixels_the_worst_point_of_each_image_counts():
    x = torch.tensor([0.3, 0.3, -0.3, 0.05]).reshape(1, 1, 2, 2)
    y = (x[:, 0] > 0).long()
    y[0, 0, 0] = -100  # counts nowhere
    found = rf.robustness(Pixels().eval(), (x, y), linf=[0.1], l2=[], bounds=(-1, 1), objective="segmentation")
    assert (found.clean, found.accuracy("linf", 0.1)) == (1.0, pytest.approx(2 / 3))


class Two(nn.Module):
    """Reads numbers and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.tokens = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, numbers: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.numbers(numbers) + self.tokens(tokens).mean(1)


@pytest.mark.parametrize("kind", ["pair", "mapping", "chances"])
def test_of_several_inputs_the_floating_ones_move(kind):
    torch.manual_seed(0)
    model, x, t = Two().eval(), torch.randn(30, 4), torch.randint(0, 5, (30, 2))
    y = model(x, t).argmax(1)
    target = nn.functional.one_hot(y, 3).float() if kind == "chances" else y
    batch = {"numbers": x, "tokens": t, "labels": target} if kind == "mapping" else ((x, t), target)
    found = rf.robustness(model, [batch], linf=[0.2], l2=[], objective="classification")
    assert found.clean == 1.0
    assert found.accuracy("linf", 0.2) < 1.0


def test_a_network_may_overwrite_its_inputs():
    model, x, y = linear()
    writing = nn.Sequential(nn.ReLU(inplace=True), *model).eval()
    plain = nn.Sequential(nn.ReLU(), *model).eval()
    how = {"linf": [0.1], "l2": [0.3], "bounds": (-9, 9)}
    before = x.clone()
    assert rf.robustness(writing, (x, y), **how).attacks == rf.robustness(plain, (x, y), **how).attacks
    assert torch.equal(x, before)


def test_nothing_of_the_model_changes():
    model = trained().train()
    model[0].eval() if isinstance(model, nn.Sequential) else None
    modes, before = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    grads = [p.requires_grad for p in model.parameters()]
    rf.robustness(model, digits().test, linf=[0.1], l2=[], samples=20)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())


def test_a_blind_attack_is_said_to_be():
    model, x, y = linear()
    steps = nn.Sequential(*model, nn.Hardtanh(-1e-3, 1e-3)).eval()  # saturated: no gradient comes through
    found = rf.robustness(steps, (x, y), linf=[0.01], l2=[], bounds=(-9, 9), restarts=0)
    assert found.blind == 1.0
    assert "cannot find a change" in found.notes[0]
    assert not rf.robustness(model, (x, y), linf=[0.01], l2=[], bounds=(-9, 9)).notes


def test_what_is_refused():
    model, x, y = linear()
    cases = [
        ({"steps": 5}, "at least 15"),
        ({"linf": [], "l2": []}, "no radius"),
        ({"linf": [-0.1]}, "positive"),
        ({"restarts": -1}, "restarts"),
        ({"bounds": (0, 1)}, "outside of the bounds"),
        ({"pixels": (torch.zeros(3), torch.ones(3))}, "do not fit"),
    ]
    for how, message in cases:
        with pytest.raises(ValueError, match=message):
            rf.robustness(model, (x, y), **how)
    with pytest.raises(ValueError, match=r"measured only for classifiers.*objective is regression"):
        rf.robustness(model, (x, torch.randn(200, 2).double()))
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2)).eval()
    with pytest.raises(ValueError, match="whole numbers"):
        rf.robustness(tokens, (torch.randint(0, 9, (20, 2)), torch.randint(0, 2, (20,))))


# --- what layers amplify


def planted(m: int, n: int, values: list[float], dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(k, len(values), generator=generator, dtype=torch.float64))[0] for k in (m, n)
    )
    return (left * torch.tensor(values, dtype=torch.float64)) @ right.T


def test_a_layer_is_measured_alike_dense_factored_and_in_training():
    values = [5.0, 3.0, 1.0, 0.5]
    dense = nn.Sequential(nn.Flatten(), nn.Linear(20, 18), nn.ReLU(), nn.Linear(18, 4)).eval()
    dense[1].weight.data.copy_(planted(18, 20, values))
    plan = rf.plan(dense, rf.Ranks({"1": 4}), "truncate", example=torch.randn(1, 20))
    forms = [dense, rf.apply_(copy.deepcopy(dense), plan), rf.dlrt_(copy.deepcopy(dense), 4)]
    forms.append(rf.overparametrize_(copy.deepcopy(dense), 3))
    for model in forms:
        first, last = amplifications(model)
        assert (first.name, first.shape, first.rank, last.rank) == ("1", (18, 20), 4, 4)
        assert (first.largest, first.condition) == (pytest.approx(5.0, rel=1e-5), pytest.approx(10.0, rel=1e-4))


def test_convolutions_in_any_form_are_one_matrix_each():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Conv2d(20, 24, 3), nn.Flatten(), nn.Linear(24 * 16, 6)
    ).eval()
    expected = [(layer.name, layer.shape) for layer in amplifications(net)]
    assert expected == [("0", (20, 27)), ("2", (24, 180)), ("4", (6, 384))]
    for method in ("truncate", "tucker", "cp"):
        small = rf.apply_(copy.deepcopy(net), rf.plan(net, "params=0.6", method, example=torch.randn(1, 3, 8, 8)))
        found = amplifications(small)
        assert [(layer.name, layer.shape) for layer in found] == expected
        assert sum(layer.rank for layer in found) < 20 + 24 + 6


@pytest.mark.parametrize(("dtype", "side"), [(torch.bfloat16, 256), (torch.float16, 1100)])
def test_half_precision_hides_no_more_of_a_layer_than_its_rounding(dtype, side):
    torch.manual_seed(0)
    full = nn.Sequential(nn.Linear(side, side), nn.Linear(side, 8, bias=False))
    full[1].weight.data.copy_(planted(8, side, [5.0, 3.0, 1.0]))
    exact, found = amplifications(full), amplifications(copy.deepcopy(full).to(dtype))
    assert (exact[1].rank, found[1].rank) == (3, 3)
    assert exact[0].rank >= side - 1
    assert found[0].rank >= 0.98 * side
    assert found[0].largest == pytest.approx(exact[0].largest, rel=1e-2)
    assert 50 < found[0].condition <= 1.1 * exact[0].condition
    assert found[1].condition == pytest.approx(5.0, rel=1e-2)


@pytest.mark.parametrize("rank", [8, 100])
def test_a_product_made_in_single_precision_has_its_own_rank(rank):
    layer = nn.Linear(400, 300, bias=False)
    layer.weight.data = torch.randn(300, rank) @ torch.randn(rank, 400)
    assert [found.rank for found in amplifications(nn.Sequential(layer))] == [rank]


def test_a_bound_on_the_condition_number_shows():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    rf.dlrt_(model, 8)
    optimizer = rf.Dlrt(model, torch.optim.SGD, lr=0.1, window=5, condition=rf.Condition(2.0))
    part = digits().train
    for x, y in part.batches(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.settle()
    assert 1 < amplifications(model)[0].condition <= 2 * (1 + 1e-5)


def whole(matrix: torch.Tensor) -> tuple[float, int, float]:
    """Largest singular value, rank, and condition number over the rank, by brute force."""
    values = torch.linalg.svdvals(matrix.detach().double())
    rank = int((values > 1e-6 * values[0]).sum())
    return float(values[0]), rank, float(values[0] / values[rank - 1])


def seen(model: nn.Module) -> list[tuple[float, int, float]]:
    return [(layer.largest, layer.rank, layer.condition) for layer in amplifications(model)]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 16, 3, groups=4), nn.Conv1d(12, 18, 3, groups=6), nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(6, 12, 3, groups=6), nn.ConvTranspose2d(8, 12, 3, groups=4), nn.Conv2d(9, 1, 1), nn.Linear(1, 7),
        nn.Linear(7, 1),
    ],
    ids=str,
)  # fmt: skip
def test_groups_are_blocks_of_one_matrix_and_no_layer_is_too_thin(layer):
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):  # (inputs, outputs / groups, …)
        blocks = [part.transpose(0, 1).flatten(1) for part in weight.chunk(layer.groups)]
    else:
        blocks = [part.flatten(1) for part in weight.chunk(getattr(layer, "groups", 1))]
    wanted = torch.block_diag(*blocks)
    (found,) = amplifications(nn.Sequential(nn.Identity(), layer))
    assert (found.largest, found.rank, found.condition) == pytest.approx(whole(wanted), rel=1e-5)
    assert found.shape == wanted.shape


def test_a_grouped_layer_of_zeros_in_one_group_has_the_ranks_of_the_others():
    layer = nn.Conv2d(8, 8, 1, groups=2, bias=False)
    layer.weight.data[4:] = 0
    assert seen(nn.Sequential(layer)) == [pytest.approx(whole(layer.weight[:4].flatten(1)), rel=1e-5)]


def in_effect(kind: str) -> nn.Linear:
    layer = nn.Linear(6, 5)
    if kind == "weight_norm":
        layer = nn.utils.parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(3)
    elif kind == "hook":
        with pytest.warns(FutureWarning):
            layer = nn.utils.weight_norm(layer)
        layer.weight_g.data.mul_(3)
    elif kind == "orthogonal":
        layer = nn.utils.parametrizations.orthogonal(layer)
    elif kind == "pruned":
        prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize("kind", ["weight_norm", "hook", "orthogonal", "pruned"])
def test_a_weight_that_is_computed_at_every_call_counts_as_it_is_computed(kind):
    torch.manual_seed(0)
    model = nn.Sequential(in_effect(kind), nn.Tanh(), nn.Linear(5, 2)).eval()
    found = rf.robustness(model, (torch.randn(40, 6), torch.arange(40) % 2), linf=[0.1], l2=[])
    effective = (model[0](torch.eye(6)) - model[0].bias).T
    assert [layer.name for layer in found.layers] == ["0", "2"]
    assert seen(model) == [pytest.approx(whole(each), rel=1e-4) for each in (effective, model[2].weight)]
    assert found.gain == pytest.approx(found.layers[0].largest * found.layers[1].largest)
    assert not found.notes


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 3), nn.Conv2d(3, 8, 3), nn.MultiheadAttention(8, 2), nn.GRU(4, 8)], ids=str
)
def test_a_model_that_is_one_layer_has_its_table(layer):
    wrapped = amplifications(nn.Sequential(layer))
    found = amplifications(layer)
    assert seen(layer) == seen(nn.Sequential(layer))
    assert found
    assert [each.name for each in found] == [each.name[2:] or type(layer).__name__ for each in wrapped]


def test_what_is_stored_as_whole_numbers_is_one_layer_too():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    small = rf.apply_(
        copy.deepcopy(dense), rf.plan(dense, rf.Ranks({"0": 5}), "truncate", forms="int8", example=torch.randn(1, 40))
    )
    assert "Rounded" in str(small)
    x = torch.eye(40)
    wanted = (small[0](x) - small[0](torch.zeros(1, 40))).T
    assert seen(small)[0] == pytest.approx(whole(wanted), rel=1e-3)


class Own(nn.Module):
    """Multiplies in code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.pair, self.last = nn.Parameter(torch.eye(4)), nn.Bilinear(4, 4, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pair(x, x @ self.mixed))


def test_what_is_left_out_is_named():
    x = torch.randn(20, 4)
    found = rf.robustness(Own(), (x, torch.arange(20) % 2), linf=[0.1], l2=[])
    assert [layer.name for layer in found.layers] == ["last"]
    (note,) = found.notes
    assert all(name in note for name in ("∏σ₁", "mixed (", "pair.weight (")), note
    assert found.to_dict()["notes"] == [note]


def test_reading_a_weight_in_training_mode_does_not_change_it():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))).train()
    before = copy.deepcopy(model.state_dict())
    assert seen(model) == seen(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert model[0].training


# --- which samples


def sorted_classes() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Answers 0 whatever comes, which is right for the first third of the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].bias.data = torch.tensor([99.0, 0.0, 0.0])
    return model, torch.randn(3000, 4), torch.arange(3).repeat_interleave(1000)


class Mine:
    """In memory, in a class of its own."""

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def normalize(self, batch: torch.Tensor) -> torch.Tensor:
        return batch / 2


@pytest.mark.parametrize("kind", [lambda x, y: (x, y), torch.utils.data.TensorDataset, Mine])
def test_samples_are_drawn_of_whatever_is_in_memory(kind):
    model, x, y = sorted_classes()
    how = {"linf": [0.01], "l2": [], "samples": 600}
    found = rf.robustness(model, kind(x, y), **how)
    assert (found.samples, found.clean) == (600, pytest.approx(1 / 3, abs=0.08))  # four deviations
    assert rf.robustness(model, kind(x, y), **how) == found
    assert rf.robustness(model, kind(x, y), **how, seed=1) != found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_named(value):
    model, x, y = sorted_classes()
    x[2345, 2] = value
    for samples in (3000, None):
        with pytest.raises(ValueError, match=r"sample 2345 holds NaN or infinity.*leave this sample out, or mend it"):
            rf.robustness(model, (x, y), linf=[0.01], l2=[], samples=samples)
    with pytest.raises(ValueError, match="sample 345 holds"):  # read once: counted from what came
        rf.robustness(model, iter([(x[2000:], y[2000:])]), linf=[0.01], l2=[])


def test_of_one_score_the_advice_can_be_followed():
    torch.manual_seed(0)
    x = torch.randn(30, 4)
    y, single = (x[:, :1] > 0).float(), nn.Linear(4, 1)
    with pytest.raises(
        ValueError, match=r"multi-label: the network gives one number.*torch\.cat\(\[-z, z\], 1\)"
    ) as error:
        rf.robustness(single, (x, y), linf=[0.1], l2=[])
    assert "objective='classification'" not in str(error.value)
    two = nn.Sequential(nn.Linear(4, 2))
    two[0].weight.data, two[0].bias.data = (torch.cat([-part, part]).detach() for part in single.parameters())
    found = rf.robustness(two, (x, y.long().squeeze(1)), linf=[0.1], l2=[])
    assert found.clean == pytest.approx(float(((single(x) > 0) == (y > 0.5)).double().mean()))
    with pytest.raises(ValueError, match="give data with a class for each sample"):
        rf.robustness(two, x, linf=[0.1], l2=[])
    several = (torch.rand(30, 2) > 0.5).float()
    with pytest.raises(ValueError, match="give objective='classification' if"):
        rf.robustness(two, (x, several), linf=[0.1], l2=[])


# --- from the command line


def test_original_and_compressed_network_side_by_side(tmp_path):
    weights, small, out = write_weights(tmp_path / "w.safetensors"), tmp_path / "small", tmp_path / "out"
    common = ("--data", "digits")
    plan = ("compress", "digits-cnn", "--weights", weights, *common, "--budget", "params=0.3", "--samples", 100)
    succeeded(*plan, "--no-curve", "-o", small)
    asked = ("robustness", "digits-cnn", "--weights", weights, "--beside", small, *common, "--samples", 60, "-o", out)
    found = succeeded(*asked, "--linf", "0.1", "--l2", "", "--seed", 3)["networks"]
    assert list(found) == ["digits-cnn", str(small)]
    first, second = found.values()
    assert second["params"] < first["params"]
    assert [a["norm"] for a in first["attacks"]] == ["linf"]
    assert sum(x["rank"] for x in second["layers"]) < sum(x["rank"] for x in first["layers"])
    assert json.loads((out / "robustness.json").read_text()) == found
    assert len((out / "robustness.csv").read_text().splitlines()) == 1 + 2 * 2
    drawing = ET.fromstring((out / "robustness.svg").read_text())
    assert str(small) in "".join(drawing.itertext())
    table = rankfold(*asked, "--linf", "0.1", "--l2", "").stdout
    assert "linf 0.1" in table
    assert "∏κ" in table


def noted(directory, **notes):
    """A network of digits as ``compress`` writes it."""
    network = trained()
    plan = rf.plan(network, "params=0.9", "truncate", example=torch.zeros(1, 1, 8, 8))
    rf.save(rf.apply_(network, plan), plan, directory, notes=notes)
    return directory


def test_networks_with_data_of_their_own_are_not_set_beside_one_another(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_data", lambda name, **how: replace(digits(), name=name))
    digits_cnn = {"model": "digits-cnn"}
    one = noted(tmp_path / "one", **digits_cnn, data="digits", objective="classification")
    other = noted(tmp_path / "other", **digits_cnn, data="mnist")
    silent = noted(tmp_path / "silent", **digits_cnn)
    asked = ("--samples", 20, "--linf", "0.1", "--l2", "", "-o", tmp_path / "out")
    line = failed("robustness", one, "--beside", other, *asked)
    assert f"{other} has the data mnist, and {one} has digits: say with --data on which" in line
    assert not (tmp_path / "out").exists()
    for rest in ((other, "--data", "digits"), (silent,)):
        first, second = succeeded("robustness", one, "--beside", *rest, *asked)["networks"].values()
        assert (first["clean"], first["attacks"]) == (second["clean"], second["attacks"])


def test_a_command_that_makes_no_sense_says_so(tmp_path):
    weights = write_weights(tmp_path / "w.safetensors")
    asked = ("robustness", "digits-cnn", "--weights", weights, "-o", tmp_path / "out")
    assert "measured only for classifiers" in failed(*asked, "--objective", "teacher")
    assert rankfold(*asked, "--linf", "much").exit_code == 2
    assert rankfold(*asked, "--steps", 3).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_samples_are_drawn_where_data_are_sorted():
    part = digits().test
    order = part.labels.argsort()
    ordered = Split(part.inputs[order], part.labels[order], part.mean, part.std, part.scale)
    found = rf.robustness(trained(), ordered, linf=[0.05], l2=[], samples=100)
    assert found.samples == 100
    assert 0.7 < found.clean < 1


def test_the_attack_is_what_the_tests_hold_it_to(monkeypatch):
    """An attack that stands still, or goes the wrong way, fails the oracle of the linear network."""
    model, x, y = linear()
    how = {"linf": [0.6], "l2": [], "bounds": (-9, 9), "restarts": 0}
    right = rf.robustness(model, (x, y), **how).accuracy("linf", 0.6)
    for wrong in (lambda self, g: [torch.zeros_like(x) for x in g], lambda self, g: [-x.sign() for x in g]):
        monkeypatch.setattr(attack.Ball, "ascent", wrong)
        assert rf.robustness(model, (x, y), **how).accuracy("linf", 0.6) > right
