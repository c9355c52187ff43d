"""Weights as products of factors: there, and back again, for every kind of layer."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from cases import CASES, Case
from networks import NETWORKS, TORCH, network
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import rankfold
from rankfold import fold_, overparametrize_, sites
from rankfold.batches import forward
from rankfold.induce import cdln_, choose, factors, is_overparametrized
from rankfold.objectives import main_tensor
from rankfold.sites import Product, opened


@pytest.fixture(autouse=True, scope="module")
def _no_search_for_optimizers() -> Iterator[None]:
    """A tenth of a second each time, in a process as full as that of a test suite; tested in test_lorita_training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankfold.induce.overparametrize.warn_of_earlier_optimizers", lambda *_: None)
        yield


def snapshot(model: nn.Module) -> tuple[list[type], list[str], list[str]]:
    return [type(m) for m in model.modules()], list(model.state_dict()), [n for n, _ in model.named_parameters()]


def matrices(model: nn.Module) -> dict[str, Tensor]:
    found = sites(model)
    with opened(model):
        return {site.name: site.matrix(model) for site in found}


def reasons(model: nn.Module, where: str | None = None) -> dict[str, str]:
    return dict(choose(model, where).left_out)


# ---- the round trip ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_balanced_start_leaves_the_function_and_folding_restores_the_model(case: Case, depth: int) -> None:
    model, x = case.model(), case.inputs()
    before, weights, y = snapshot(model), {k: v.clone() for k, v in model.state_dict().items()}, model(x)
    assert overparametrize_(model, depth) is model
    assert is_overparametrized(model)
    torch.testing.assert_close(model(x), y, rtol=1e-10, atol=1e-12)
    for name, parts in factors(model).items():
        assert len(parts) == depth, name
        sums = torch.stack([part.square().sum() for part in parts])
        torch.testing.assert_close(sums, sums.mean().expand(depth), rtol=1e-10, atol=1e-12)
    assert fold_(model) is model
    assert snapshot(model) == before
    assert not is_overparametrized(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("start", ["random", "orthogonal"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_folding_keeps_the_function_of_any_factors_and_the_matrices_are_their_products(case: Case, start: str) -> None:
    model, x = case.model(), case.inputs()
    names = [site.name for site in sites(model)]
    overparametrize_(model, 3, start=start, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    composed = matrices(model)
    assert list(composed) == names == list(case.names)
    for name, parts in factors(model).items():
        product = parts[0] @ parts[1] @ parts[2]
        prefix = name.removesuffix("in_proj")
        stacked = name.endswith("in_proj")
        seen = torch.stack([composed[f"{prefix}{p}_proj"] for p in "qkv"]) if stacked else composed[name]
        torch.testing.assert_close(seen, product)
    y = model(x)
    fold_(model)
    torch.testing.assert_close(model(x), y)
    for name, matrix in matrices(model).items():
        torch.testing.assert_close(matrix, composed[name])


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_weight_can_be_assigned_and_read_back(case: Case) -> None:
    """``right_inverse`` is the inverse of ``forward``: torch calls it for ``module.weight = …``."""
    model = overparametrize_(case.model(), 3, start="random", generator=torch.Generator().manual_seed(5))
    for module in model.modules():
        for name, steps in dict(getattr(module, "parametrizations", {})).items():
            assert isinstance(steps[0], Product)
            wanted = torch.randn(getattr(module, name).shape, generator=torch.Generator().manual_seed(6)).double()
            setattr(module, name, wanted)
            torch.testing.assert_close(getattr(module, name), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_their_function_and_their_ties(name: str) -> None:
    model, batch = network(name, torch.float64)
    before, shared, y = snapshot(model), ties(model), outputs(model, batch, name)
    reducible = multiplied(model)
    overparametrize_(model, 3)
    torch.testing.assert_close(outputs(model, batch, name), y, rtol=1e-8, atol=1e-9)
    composed = {site.name for site in sites(model) if "rankfold.fold_" in site.note}
    assert composed >= reducible
    assert not multiplied(model)
    fold_(model)
    assert snapshot(model) == before
    assert ties(model) == shared
    torch.testing.assert_close(outputs(model, batch, name), y, rtol=1e-8, atol=1e-9)
    assert multiplied(model) == reducible


def multiplied(model: nn.Module) -> set[str]:
    """Sites that can be factored; tables that are looked up are never trained as products."""
    return {site.name for site in sites(model).reducible if not site.layer.lookup}


def outputs(model: nn.Module, batch: object, name: str) -> Tensor:
    """In eval mode, with torch's fused kernels, and in training mode without dropout, where every layer is called."""
    with torch.no_grad():
        fused = main_tensor(forward(model.eval(), batch))
        if name not in TORCH:
            return fused
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.MultiheadAttention | nn.BatchNorm2d):
                module.eval()
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        return torch.stack([fused, main_tensor(forward(model, batch))])


def ties(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)


# ---- shapes and starts ---------------------------------------------------------------------------------------------


def shapes(model: nn.Module) -> dict[str, list[tuple[int, ...]]]:
    return {name: [tuple(part.shape) for part in parts] for name, parts in factors(model).items()}


def layers() -> nn.ModuleDict:
    return nn.ModuleDict({
        "wide": nn.Linear(12, 5), "conv": nn.Conv2d(4, 6, 3), "groups": nn.Conv2d(4, 6, 3, groups=2),
        "attention": nn.MultiheadAttention(8, 2),
    })  # fmt: skip


def test_shapes_are_the_papers_or_thin_or_as_given() -> None:
    e, square = (3, 8, 8), (8, 8)
    rest = {"attention.in_proj": [e, e, e], "attention.out_proj": [square, square, square]}
    conv = [(6, 6), (6, 6), (6, 36)]  # the weight's size is behind: the paper unfolds a kernel the other way round
    groups = [(2, 3, 3), (2, 3, 3), (2, 3, 18)]
    paper = {"wide": [(5, 12), (12, 12), (12, 12)], "conv": conv, "groups": groups} | rest
    thin = paper | {"wide": [(5, 5), (5, 5), (5, 12)]}
    assert shapes(overparametrize_(layers(), 3, start="random")) == paper
    assert shapes(overparametrize_(layers(), 3)) == thin
    assert shapes(overparametrize_(layers(), 3, inner="paper")) == paper
    assert shapes(overparametrize_(layers(), 3, start="orthogonal", inner="thin")) == thin
    given = shapes(overparametrize_(layers(), 3, "wide", start="random", inner=(7, 2)))
    assert given == {"wide": [(5, 7), (7, 2), (2, 12)]}
    assert shapes(overparametrize_(layers(), 2, "conv", inner=9)) == {"conv": [(6, 9), (9, 36)]}


def test_what_the_paper_shapes_add_to_a_balanced_start_never_trains() -> None:
    torch.manual_seed(0)
    data, target = torch.randn(32, 12), torch.randint(0, 5, (32,))
    ends = []
    for inner in ("paper", "thin"):
        torch.manual_seed(1)
        model = overparametrize_(nn.Sequential(nn.Linear(12, 5)), 3, inner=inner)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data), target).backward()
            optimizer.step()
        if inner == "paper":
            first, second, third = factors(model)["0"]
            assert not first[:, 5:].any()
            assert not second[5:].any()
            assert not second[:, 5:].any()
            assert not third[5:].any()
        ends.append(model(data))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_random_factors_are_as_torch_begins_them_and_their_product_is_smaller() -> None:
    model = overparametrize_(
        nn.Sequential(nn.Linear(400, 300)), 3, start="random", generator=torch.Generator().manual_seed(0)
    )
    bound = 400**-0.5
    for part in factors(model)["0"]:
        assert 0.95 * bound < float(part.detach().abs().max()) <= bound
        assert float(part.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    # an ordinary layer's weight has the deviation of one factor
    assert float(model[0].weight.detach().std()) == pytest.approx(bound / 3**0.5 / 3, rel=0.03)


def test_orthogonal_factors_have_one_singular_value_and_the_norm_of_the_weight() -> None:
    layer = nn.Linear(12, 5)
    norm = float(layer.weight.detach().norm())
    model = overparametrize_(nn.Sequential(layer), 3, start="orthogonal", generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(model[0].weight)
    torch.testing.assert_close(values, values[0].expand(5), rtol=1e-5, atol=1e-6)
    assert float(model[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-5)
    before = [part.clone() for part in factors(model)["0"]]
    other = overparametrize_(nn.Sequential(nn.Linear(12, 5)), 3, start="random", generator=torch.Generator())
    assert not any(torch.equal(a, b) for a, b in zip(before, factors(other)["0"]))


@pytest.mark.parametrize("start", ["random", "orthogonal"])
def test_the_generator_decides_and_the_global_state_is_left_alone(start: str) -> None:
    def made() -> list[Tensor]:
        model = nn.Sequential(nn.Linear(6, 4))
        state = torch.get_rng_state()
        overparametrize_(model, 3, start=start, generator=torch.Generator().manual_seed(7))  # type: ignore[arg-type]
        assert torch.equal(torch.get_rng_state(), state)
        return [part.detach() for part in factors(model)["0"]]

    first = made()
    if start == "random":  # an orthogonal start also takes the norm of the weight
        assert all(torch.equal(a, b) for a, b in zip(first, made()))


@pytest.mark.parametrize("depth", [2, 3])
def test_a_zero_weight_stays_zero_but_can_leave_it(depth: int) -> None:
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    model = overparametrize_(nn.Sequential(layer), depth)
    assert not model[0].weight.any()
    model(torch.randn(3, 6)).square().sum().backward()
    assert any(part.grad is not None and part.grad.any() for part in factors(model)["0"])


@pytest.mark.parametrize("depth", [2, 3])
def test_zeros_that_are_assigned_can_be_left_too_by_every_group(depth: int) -> None:
    model = overparametrize_(nn.Sequential(nn.Linear(6, 4), nn.Conv1d(4, 6, 3, groups=2)), depth)
    model[0].weight = torch.zeros(4, 6)
    model[1].weight = torch.cat([torch.zeros(3, 2, 3), torch.randn(3, 2, 3)])
    for other in (model, overparametrize_(fold_(copy.deepcopy(model)), depth)):
        assert not other[0].weight.any()
        assert not other[1].weight[:3].any()
        other[1](other[0](torch.randn(9, 5, 6)).mT).square().sum().backward()
        other[1](torch.randn(2, 4, 5)).sum().backward()
        for name, parts in factors(other).items():
            moved = torch.stack([part.grad.flatten(-2).any(-1) for part in parts])
            assert moved.any(0).all(), name


def test_what_the_factors_cannot_hold_is_not_assigned() -> None:
    model = overparametrize_(nn.Sequential(nn.Linear(8, 6)), 2, start="random", inner=3)
    before = model[0].weight
    with pytest.raises(ValueError, match=r"has the shape \(6, 8\): it cannot become one of the shape \(3, 3\)$"):
        model[0].weight = torch.randn(3, 3)
    with pytest.raises(
        ValueError, match=r"hold rank 3, and what is assigned to it would lose 0\.\d+ of its norm: .*fold_"
    ):
        model[0].weight = torch.randn(6, 8)
    assert torch.equal(model[0].weight, before)
    model[0].weight = low = torch.randn(6, 3) @ torch.randn(3, 8)
    torch.testing.assert_close(model[0].weight, low)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("linear-wide", "conv2d", "conv2d-groups", "attention")], ids=repr
)
def test_half_precision(case: Case, dtype: torch.dtype) -> None:
    model, x = case.model(dtype), case.inputs(dtype)
    y = model(x)
    overparametrize_(model, 3)
    assert {p.dtype for p in model.parameters()} == {dtype}
    near = {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(model(x), y, **near)
    model(x).float().square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    fold_(model)
    assert {p.dtype for p in model.parameters()} == {dtype}
    torch.testing.assert_close(model(x), y, **near)


# ---- sharing, parts of a model, and what is left out -----------------------------------------------------------------


class Tied(nn.Module):
    """Two layers of one weight, with biases of their own, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.second.weight = self.first.weight
        self.again = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x)))) + self.again(x)


def test_tied_weights_share_factors_and_are_one_parameter_again() -> None:
    model, x = Tied(), torch.randn(4, 6)
    y, before, shared = model(x), snapshot(model), ties(model)
    overparametrize_(model, 3)
    torch.testing.assert_close(model(x), y)
    found = factors(model)
    assert all(a is b for a, b in zip(found["first"], found["second"], strict=True))
    assert sites(model)["first"].tied_to == ("second.weight",)
    assert len(list(model.parameters())) == 3 + 3 + 3  # factors of two matrices, three biases
    with torch.no_grad():
        found["first"][0].mul_(2)
    torch.testing.assert_close(model.first.weight, model.second.weight)
    twin = copy.deepcopy(model)
    copied = factors(twin)
    assert all(a is b for a, b in zip(copied["first"], copied["second"], strict=True))
    fold_(model)
    assert model.first.weight is model.second.weight
    assert model.again is model.head
    assert snapshot(model) == before
    assert ties(model) == shared


def test_tied_to_what_cannot_be_a_product_is_left_alone() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "head": nn.Linear(6, 9), "body": nn.Linear(6, 6)})
    model["head"].weight = model["embed"].weight
    assert "embed.weight" in reasons(model)["head.weight"]
    assert list(factors(overparametrize_(model))) == ["body"]
    assert model["head"].weight is model["embed"].weight
    tied = Tied()
    assert "tied to second.weight" in reasons(tied, "first")["first.weight"]
    with pytest.raises(ValueError, match=r"no weight of the model can become a product .*tied"):
        overparametrize_(tied, 3, lambda name, module: name == "first")


def test_every_parameter_that_is_left_out_has_its_reason() -> None:
    frozen = nn.Linear(4, 4)
    frozen.requires_grad_(False)
    model = nn.ModuleDict({
        "embed": nn.Embedding(9, 6), "lazy": nn.LazyLinear(4), "frozen": frozen, "thin": nn.Linear(4, 1),
        "depthwise": nn.Conv2d(4, 4, 3, groups=4), "normed": parametrizations.weight_norm(nn.Linear(4, 4)),
        "attention": nn.MultiheadAttention(8, 2), "fine": nn.Linear(4, 4), "norm": nn.LayerNorm(4),
    })  # fmt: skip
    left = reasons(model, None)
    for name, words in {
        "embed.weight": "looks up", "lazy.weight": "run the model once", "frozen.weight": "frozen",
        "thin.weight": "rank 1", "depthwise.weight": "rank 1", "norm.weight": "vector",
        "normed.parametrizations.weight.original0": "",
    }.items():  # fmt: skip
        assert words in left[name], name
    assert [target.name for target in choose(model).targets] == ["attention.in_proj", "attention.out_proj", "fine"]
    part = choose(model, "attention.q_proj")
    assert not part.targets
    assert "all three" in dict(part.left_out)["attention.in_proj_weight"]
    before = snapshot(model)
    overparametrize_(model, 2)
    assert "fold first" in reasons(model)["fine.weight"]
    assert snapshot(fold_(model)) == before
    assert not frozen.weight.requires_grad


def test_a_part_of_a_model_and_another_part_later() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    before, x = snapshot(model), torch.randn(4, 6)
    y = model(x)
    overparametrize_(model, 2, "0")
    overparametrize_(model, 4, lambda name, module: name == "2")
    assert {name: len(parts) for name, parts in factors(model).items()} == {"0": 2, "2": 4}
    assert [site.name for site in sites(model).reducible] == ["3"]
    torch.testing.assert_close(model(x), y)
    assert snapshot(fold_(model)) == before
    same = copy.deepcopy(model.state_dict())
    assert snapshot(fold_(model)) == before  # nothing to fold
    assert all(torch.equal(value, same[name]) for name, value in model.state_dict().items())


# ---- copies and files ----


def test_folding_a_copy_leaves_the_original_composed() -> None:
    """torch's remove_parametrizations takes the property from the class, which deep copies share."""
    model, x = overparametrize_(nn.Sequential(nn.Linear(6, 4), nn.Conv1d(4, 3, 1))[:1], 3), torch.randn(2, 6)
    y, twin = model(x), copy.deepcopy(model)
    fold_(twin)
    assert torch.equal(model(x), y)
    torch.testing.assert_close(twin(x), y)
    assert is_overparametrized(model)
    assert twin[0].weight.data_ptr() != factors(model)["0"][0].data_ptr()


def test_state_dicts_of_factors_go_to_disk_and_back() -> None:
    model = overparametrize_(Tied(), 3, start="random", generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = overparametrize_(Tied(), 3, inner="paper")
    other.load_state_dict(torch.load(buffer, weights_only=True))
    x = torch.randn(4, 6)
    assert torch.equal(other(x), model(x))
    assert "first.parametrizations.weight.original0" in model.state_dict()
    fold_(other)
    assert not any("parametrizations" in key for key in other.state_dict())


def test_whole_modules_are_pickled_only_after_folding() -> None:
    model = overparametrize_(nn.Sequential(nn.Linear(4, 4)), 3)
    with pytest.raises(RuntimeError, match="state_dict"):
        torch.save(model, io.BytesIO())
    torch.save(fold_(model), io.BytesIO())


# ---- errors ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 1}, "depth must be a whole number of at least 2 factors, got 1"),
        ({"depth": 2.0}, "depth must be a whole number"),
        ({"depth": True}, "depth must be a whole number"),
        ({"start": "zeros"}, "start must be one of balanced, random, orthogonal, got 'zeros'"),
        ({"inner": (4,)}, "inner must be one width, or 2 of them for 3 factors"),
        ({"inner": 0}, "at least 1"),
        ({"inner": "wide"}, "inner must be 'paper', 'thin', or one or several widths"),
        ({"inner": (6, 2)}, r"0 \(Linear 4×6\): an inner width of 2 cannot hold .* start='random'"),
        ({"where": "nothing*"}, r"where='nothing\*': no layer of this model matches; its layers are 0, 1$"),
        ({"where": lambda name, module: False}, "where matches no layer"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(settings: dict, message: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    before, weight = snapshot(model), model[0].weight
    with pytest.raises(ValueError, match=message):
        overparametrize_(model, **settings)
    assert snapshot(model) == before
    assert model[0].weight is weight


def test_a_second_time_is_told_to_fold_first() -> None:
    model = overparametrize_(nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4)))
    with pytest.raises(ValueError, match=r"^the model is already over-parametrised: fold it first \(rankfold.fold_\)$"):
        overparametrize_(model)
    with pytest.raises(ValueError, match=r"^no weight of the model can become a product \(0\.weight: an embedding"):
        overparametrize_(nn.Sequential(nn.Embedding(9, 6)))


def test_broken_or_missing_weights_are_named_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"1 \(Linear 4×4\): .*NaN"):
        overparametrize_(model)
    assert not is_overparametrized(model)
    for prepare_ in (
        *(
            lambda model, start=start: overparametrize_(model, start=start)
            for start in ("balanced", "random", "orthogonal")
        ),
        *(lambda model, epsilon=epsilon: cdln_(model, ["0", "1"], 2, epsilon=epsilon) for epsilon in (None, 0.5)),
    ):
        ghost = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4, device="meta"))
        before = snapshot(ghost)
        with pytest.raises(
            ValueError, match=r"1 \(Linear 4×4\): its weights are on the meta device, without values: load"
        ):
            prepare_(ghost)
        assert snapshot(ghost) == before


def test_another_parametrization_on_top_must_go_first() -> None:
    model = overparametrize_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 3)
    parametrizations.weight_norm(model[1])
    with pytest.raises(ValueError, match="1: its weight has another parametrization"):
        fold_(model)
    assert isinstance(model[0].parametrizations.weight[0], Product)
    assert parametrize.is_parametrized(model[1])


def test_plans_say_to_fold_first() -> None:
    model = overparametrize_(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)), 3)
    with pytest.raises(ValueError, match=r"fold"):
        rankfold.plan(model, rankfold.Params(0.5), "truncate", example=torch.zeros(2, 32))
