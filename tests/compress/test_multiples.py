"""Ranks in multiples: what is planned, refused and drawn, and what quantisers of blocks take of it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import rankfold as rf
from rankfold.compress.ranks.asked import multiple_of
from rankfold.forms import Form
from rankfold.pipeline.compression.outcome.curve import quality_curve
from rankfold.sites import sites


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 10)
        ).eval()  # fmt: skip


def data(samples: int = 512) -> torch.Tensor:
    return torch.randn(samples, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def known() -> rf.Profile:
    return rf.profile(network(), data())


@given(multiple=st.integers(1, 64), kept=st.floats(0.35, 1.0), rule=st.sampled_from(["optimal", "local", "global"]))
def test_every_rank_is_a_multiple_and_the_budget_holds(known, multiple, kept, rule):
    try:
        plan = known.plan([f"params={kept}", rf.Multiples(multiple)], rule)
    except rf.BudgetError:
        return
    assert all(entry.rank % multiple == 0 and entry.rank > 0 for entry in plan.changed)
    assert plan.after.params <= kept * plan.before.params


def test_a_step_of_one_changes_nothing_and_a_larger_one_costs_no_more_than_its_step(known):
    free, one, eight = (known.plan(["params=0.5", *more]) for more in ((), (rf.Multiples(1),), (rf.Multiples(8),)))
    assert one.entries == free.entries
    assert {entry.rank % 8 for entry in free.changed} != {0}  # the law above is not true by chance
    spare = 0.5 * eight.before.params - eight.after.params
    assert spare < 8 * max(sum(entry.shape) for entry in eight.changed)  # no further step of 8 fits


def test_a_layer_without_such_a_rank_is_kept_and_says_why(known):
    plan = known.plan(["params=0.6", rf.Multiples(32)])
    assert plan["4"].form is Form.KEEP
    assert plan["4"].note == "no rank of this layer is a multiple of 32"


def test_multiples_that_no_layer_has_are_named_as_what_stands_in_the_way(known):
    with pytest.raises(rf.BudgetError, match="ranks in multiples of 512 allow no smaller rank: ask for less of that"):
        known.plan(["params=0.6", rf.Multiples(512)])


def test_how_small_must_be_said_too_and_given_ranks_must_fit(known):
    with pytest.raises(ValueError, match="multiples of 8' does not say how small"):
        known.plan(rf.Multiples(8))
    with pytest.raises(ValueError, match=r"rank 20 was asked for; possible ranks in multiples of 8 are 8, 16, 24"):
        known.plan([rf.Ranks({"2": 20}), rf.Multiples(8)])
    assert known.plan([rf.Ranks({"2": 24}), rf.Multiples(8)])["2"].rank == 24
    for wrong in (0, -8, True, 1.5):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            rf.Multiples(wrong)
    assert multiple_of((rf.Multiples(8), rf.Params(0.5), rf.Multiples(12))) == 24


def test_both_sizes_inside_a_tucker_convolution_are_multiples():
    model = nn.Sequential(nn.Conv2d(24, 40, 3), nn.ReLU(), nn.Conv2d(40, 8, 3)).eval()
    plan = rf.plan(model, ["params=0.5", rf.Multiples(4)], "tucker", example=torch.randn(1, 24, 9, 9))
    assert plan.changed
    for entry in plan.changed:
        assert not any(size % 4 for size in entry.form.ranks_of(sites(model)[entry.site].layer, entry.rank))


def test_a_plan_keeps_what_was_asked_and_a_slice_of_it_can_ask_again(known, tmp_path):
    plan = known.plan(["params=0.7", rf.Multiples(8)])
    plan.save(tmp_path / "plan.json")
    assert rf.Plan.load(tmp_path / "plan.json").budgets == plan.budgets
    assert plan.asked() == "params ≤ 0.7 of dense, ranks in multiples of 8"
    small = rf.apply_(network(), plan, known)
    stored = rf.Stored(small, plan, {}, rf.bottlenecks(small, data()))
    sliced = rf.slice_(stored, ["params=0.5", rf.Multiples(16)], example=data(1))
    ranks = [entry.rank for entry in sliced.plan.changed if entry.rank != plan[entry.site].rank]
    assert ranks
    assert not any(rank % 16 for rank in ranks)


def test_methods_that_fit_layers_and_the_curve_of_budgets_keep_to_it(known):
    sequential = rf.plan(network(), ["params=0.5", rf.Multiples(16)], "sequential", data())
    factored = [entry.rank for entry in sequential.changed if entry.form.decomposed is Form.FACTORED]
    assert factored
    assert not any(rank % 16 for rank in factored)
    target = network()(data()).detach()
    points = list(
        quality_curve(network(), (data(), target), data(), known, kept=(0.7, 0.5), besides=[rf.Multiples(32)])
    )
    assert len(points) == 2


# ---- what quantisers of blocks take ----------------------------------------------------------------------------------


def compressed(known: rf.Profile, *besides: rf.Multiples) -> nn.Module:
    return rf.apply_(copy.deepcopy(known.needed_model()), known.plan(["params=0.5", *besides]), known)


def inner(model: nn.Module) -> set[int]:
    """Inputs of every linear layer."""
    return {module.in_features for module in model.modules() if type(module) is nn.Linear}


@pytest.mark.filterwarnings("ignore")  # of torchao about its own insides
def test_torchao_takes_blocks_of_32_weights(known):
    quantization = pytest.importorskip("torchao.quantization")
    how = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32))
    with pytest.raises((AssertionError, ValueError), match="divisible"):
        quantization.quantize_(compressed(known), how)
    small, dense = compressed(known, rf.Multiples(32)), copy.deepcopy(known.needed_model())
    assert not any(size % 32 for size in inner(small))
    lost = []
    for model in (small, dense):
        before = model(data())
        quantization.quantize_(model, how)
        lost.append(float((model(data()) - before).detach().norm() / before.detach().norm()))
    assert lost[0] < 3 * lost[1] < 1  # int4 costs a network of factors more than the dense one, and not its answers


def test_gguf_takes_blocks_of_32_weights(known):
    gguf = pytest.importorskip("gguf")
    from gguf.quants import QuantError, dequantize, quantize

    kind = gguf.GGMLQuantizationType.Q8_0

    def written(model: nn.Module) -> None:
        for module in model.modules():
            if type(module) is nn.Linear:
                weight = module.weight.detach().numpy()
                again = torch.from_numpy(dequantize(quantize(weight, kind), kind))
                assert (again - module.weight).norm() < 0.02 * module.weight.norm()

    with pytest.raises(QuantError, match="quantize tensor with shape"):
        written(compressed(known))
    written(compressed(known, rf.Multiples(32)))
