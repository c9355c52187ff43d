"""The pivoted form: r·(m + n − r) numbers, exact, well-conditioned, and in every place where the pair of factors is."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import rankfold as rf
from rankfold.export import to_onnx, to_torch_export
from rankfold.forms import Form
from rankfold.layers import FactoredWeight, FactoredWriteError, PivotedConv, PivotedConv1D, PivotedLinear
from rankfold.linalg import pivoted
from rankfold.linalg.pivoting import exchanged_
from rankfold.sites import sites
from rankfold.testing import check_form


def drawn(m: int, n: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((m, rank), (rank, n)))


def product(found) -> torch.Tensor:
    return torch.cat([found.rows, found.rest @ found.rows])[found.order]


@given(m=st.integers(2, 12), n=st.integers(1, 12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_rank_is_exact_and_takes_as_many_numbers_as_it_says(m, n, data):
    rank = data.draw(st.integers(1, min(m - 1, n)))
    left, right = drawn(m, n, rank, data.draw(st.integers(0, 5)))
    found = pivoted(left, right)
    assert (product(found) - left @ right).norm() <= 1e-12 * (left @ right).norm()
    assert found.rows.numel() + found.rest.numel() == rank * (m + n - rank)
    assert sorted(found.order.tolist()) == list(range(m))
    assert found.rest.abs().max() <= 8


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_factors_of_a_smaller_rank_than_they_are_wide(rank):
    left, right = drawn(9, 7, 5)
    if rank:
        left = left[:, :rank] @ drawn(rank, 5, rank)[0][:rank, :rank] @ torch.ones(rank, 5, dtype=torch.float64).tril()
    else:
        left = torch.zeros_like(left)
    found = pivoted(left, right)
    assert bool(found.rest.isfinite().all())
    assert found.rest.abs().max() <= 8
    assert (product(found) - left @ right).norm() <= 1e-12 * max((left @ right).norm(), 1)


def test_directions_of_very_different_size_are_all_kept():
    left, right = drawn(12, 9, 4)
    scale = torch.tensor([1e9, 1.0, 1e-9, 1e-18], dtype=torch.float64)
    found = pivoted(left * scale, right / scale.unsqueeze(-1))
    assert (product(found) - left @ right).norm() <= 1e-12 * (left @ right).norm()


def test_rows_are_exchanged_until_no_entry_is_large():
    left, _ = drawn(14, 6, 5)
    left[1] = left[0] + 1e-6 * left[1]  # two rows that are nearly one: badly chosen
    made = (left[5:] @ left[:5].inverse()).numpy()
    assert abs(made).max() > 1e4
    order = exchanged_(made, np.arange(14), 2.0)
    assert abs(made).max() <= 2
    assert sorted(order) == list(range(14))
    whole = torch.from_numpy(made) @ left[order[:5]]
    torch.testing.assert_close(whole, left[order[5:]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right"), [((5, 5), (5, 4)), ((5, 2), (3, 4)), ((3, 4), (4, 4))], ids=["full", "apart", "wide"]
)
def test_what_is_no_pair_of_that_kind_is_refused(left, right):
    with pytest.raises(ValueError, match="r < m were expected"):
        pivoted(torch.ones(left), torch.ones(right))


def layers() -> dict[str, tuple[nn.Module, torch.Tensor, type]]:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return {
        "wide": (nn.Linear(9, 7), torch.randn(3, 9), PivotedLinear),
        "tall": (nn.Linear(6, 11, bias=False), torch.randn(3, 4, 6), PivotedLinear),
        "conv1d": (Conv1D(7, 5), torch.randn(3, 5), PivotedConv1D),
        "conv": (nn.Conv2d(4, 8, 3, padding=1, stride=2), torch.randn(2, 4, 9, 9), PivotedConv),
        "groups": (nn.Conv2d(8, 12, 3, groups=2, bias=False), torch.randn(2, 8, 9, 9), PivotedConv),
        "volume": (nn.Conv3d(3, 5, 2), torch.randn(2, 3, 4, 4, 4), PivotedConv),
    }


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_laws_of_a_form(name, dtype):
    layer, inputs, _ = layers()[name]
    check_form(Form.PIVOTED, layer.to(dtype), inputs.to(dtype))


def test_not_for_transposed_convolutions_nor_for_a_single_row():
    for layer in (nn.ConvTranspose2d(4, 6, 3),):
        assert Form.PIVOTED not in sites(nn.Sequential(layer))[0].forms


@pytest.mark.parametrize("name", layers())
def test_a_plan_takes_it_where_it_is_cheaper_and_costs_what_it_says(name, tmp_path):
    layer, inputs, kind = layers()[name]
    model = nn.Sequential(layer).eval()
    plan = rf.plan(model, "params=0.85", "truncate", example=inputs)
    (entry,) = plan.entries
    assert entry.form in (Form.PIVOTED, Form.SPATIAL)
    if entry.form is Form.SPATIAL:
        plan = plan.with_entries((rf.Entry(**(vars(entry) | {"form": Form.PIVOTED, "rank": 2})),))
    small = rf.apply_(copy.deepcopy(model), plan)
    assert type(small[0]) is kind
    m, n = entry.shape
    rank = plan.entries[0].rank
    weights = entry.groups * rank * (m + n - rank)
    assert sum(p.numel() for p in small.parameters()) == weights + (entry.groups * m if entry.bias else 0)
    if not plan.edited:
        assert rf.model_cost(small, inputs) == plan.after
    rf.save(small, plan, tmp_path / "saved")
    again = rf.load(tmp_path / "saved", copy.deepcopy(model)).model
    assert torch.equal(again(inputs), small(inputs))
    assert torch.equal(again[0].up.order, small[0].up.order)


def test_no_rank_is_too_large_to_save():
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    plan = rf.plan(model, "params=0.999", "truncate", example=torch.randn(1, 32))
    (entry,) = plan.entries
    assert (entry.form, entry.rank) == (Form.PIVOTED, 30)  # 31 leaves 1023 of 1024; as a pair 16 are the most
    assert plan.after.params == 30 * 34


@pytest.mark.parametrize("turned", [False, True])
def test_its_weight_is_read_like_that_of_the_other_factored_layers(turned):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16, bias=False)).double()
    small = rf.apply_(model, rf.plan(model, "params=0.5", "truncate", example=torch.randn(1, 20).double()))[0]
    rank = small.rank
    weight = small.weight.t() if turned else small.weight
    assert isinstance(weight, FactoredWeight)
    dense = small.up.weight @ small.down.weight
    dense = dense.t() if turned else dense
    torch.testing.assert_close(weight.product(), dense)
    m, n = dense.shape
    x, y = torch.randn(5, n, dtype=torch.float64), torch.randn(5, m, dtype=torch.float64)
    uses = {
        "linear": (lambda w: nn.functional.linear(x, w), 5),
        "back": (lambda w: y @ w, 5),
        "columns": (lambda w: w @ x.mT, 5),
        "vector": (lambda w: w @ x[0], 1),
    }
    for name, (use, rows) in uses.items():
        torch.testing.assert_close(use(weight), use(dense), msg=name)
        with FlopCounterMode(display=False) as counter:
            use(weight)
        assert counter.get_total_flops() == 2 * rows * rank * (20 + 16 - rank), name
    with pytest.raises(FactoredWriteError, match="product of factors"):
        weight.add_(1)
    with pytest.raises(FactoredWriteError, match="product of factors"), torch.no_grad():
        small.up.weight.mul_(2)


def test_gradients_and_transforms_of_torch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8))
    small = rf.apply_(model, rf.plan(model, "params=0.6", "truncate", example=torch.randn(1, 10)))
    x = torch.randn(4, 10)
    small[0].weight.square().sum().backward()
    assert all(p.grad is not None for name, p in small.named_parameters() if "bias" not in name)
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), small(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(small)
    torch.testing.assert_close(scripted(x), small(x))
    state = {**dict(small.named_parameters()), **dict(small.named_buffers())}
    torch.testing.assert_close(torch.vmap(lambda row: functional_call(small, state, (row,)))(x), small(x))


@pytest.mark.parametrize("name", ["wide", "conv", "groups"])
def test_it_is_exported(name, tmp_path):
    layer, inputs, _ = layers()[name]
    model = nn.Sequential(layer).eval()
    plan = rf.plan(model, "params=0.85", "truncate", example=inputs)
    entries = (rf.Entry(**(vars(plan.entries[0]) | {"form": Form.PIVOTED, "rank": 3})),)
    small = rf.apply_(model, plan.with_entries(entries))
    assert to_torch_export(small, inputs, tmp_path / "small.pt2") <= 1e-6
    assert to_onnx(small, inputs, tmp_path / "small.onnx") <= 1e-5
