"""What is counted is what the compressed model costs: parameters, bytes and FLOPs, to the last one."""

import copy

import pytest
import torch
from cases import CASES, Case
from networks import NETWORKS, Encoder, network, tokens
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from rankfold.batches import arguments
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.planner import plan
from rankfold.compress.ranks.budget import Ranks
from rankfold.costs import Cost, Example, evaluating, latencies, model_cost, storage, trace, with_batch
from rankfold.costs.counter import Counter as FlopCount
from rankfold.layers import LowRankLinear
from rankfold.sites import Form, sites


def half_ranks(model: nn.Module, method: str) -> Ranks:
    form = {"tucker": Form.TUCKER, "cp": Form.CP}.get(method, Form.FACTORED)
    fitting = [site for site in sites(model).reducible if form in site.forms]
    ranks = {}
    for site in fitting:  # the largest rank that is cheaper than the dense layer in either count
        dense = site.layer.params(Form.KEEP, 0, False)
        gaining = [r for r in range(1, site.max_rank(form) + 1) if site.layer.params(form, r, False) < dense]
        if gaining:
            ranks[site.name] = gaining[(len(gaining) - 1) // 2]
    return Ranks(ranks)


REDUCIBLE = [
    (case, method)
    for case in CASES
    for method in ("truncate", "project", "tucker")
    if half_ranks(case.model(), method).ranks
]


@pytest.mark.parametrize(("case", "method"), REDUCIBLE, ids=str)
def test_the_plan_says_what_the_applied_model_costs(case: Case, method: str):
    model, x = case.model(torch.float32), case.inputs(torch.float32)
    ranks = half_ranks(model, method)
    made = plan(model, ranks, method, [x], example=x)
    small = apply_(copy.deepcopy(model), made)
    assert made.changed
    assert made.before == model_cost(model, x)
    assert made.after == model_cost(small, x)
    params = sum(p.numel() for p in small.parameters())
    assert made.after.params == params
    buffers = sum(b.numel() * b.itemsize for b in small.buffers())  # the order of outputs of a pivoted layer
    assert made.after.bytes == 4 * params + buffers


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in NETWORKS] + [("conv_net", torch.bfloat16), ("gpt2", torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("method", ["truncate", "project"])
def test_the_plan_says_what_a_compressed_network_costs(name: str, method: str, dtype: torch.dtype):
    model, batch = network(name, dtype)
    args, kwargs = arguments(batch)  # tables of positions are looked up once, whatever the number of samples
    made = plan(model, ["params=0.8", "flops=0.9"], method, [batch], example=kwargs or args)
    small = apply_(copy.deepcopy(model), made)
    found = model_cost(small, kwargs or args)
    assert found == made.after
    assert made.before == model_cost(model, kwargs or args)
    assert made.after.params <= 0.8 * made.before.params
    assert made.after.flops <= 0.9 * made.before.flops


def test_attention_is_counted():
    """Four projections, the scores and the weighted sum; also in eval mode, where a fused kernel would hide them."""
    batch, length, width, heads = 3, 5, 8, 2
    attention = nn.MultiheadAttention(width, heads, batch_first=True).eval()
    projections = 4 * 2 * length * width * width
    products = 2 * 2 * length * length * width
    x = torch.randn(batch, length, width)
    assert model_cost(nn.ModuleDict({"a": attention})["a"], (x, x, x)).flops == projections + products
    model, _ = network("encoder")
    ids, mask = tokens()
    feed_forward = 2 * 2 * 10 * 16 * 24
    layer = 4 * 2 * 10 * 16 * 16 + 2 * 2 * 10 * 10 * 16 + feed_forward
    for example in ((ids,), (ids, mask == 0)):
        assert model_cost(model, example).flops == 2 * layer + 2 * 16 * 5
        assert model_cost(copy.deepcopy(model).train(), example).flops == 2 * layer + 2 * 16 * 5


class BySize(nn.Module):
    """Control flow that depends on values, so that nothing can be counted without computing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Encoder()

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) if ids.sum().item() > 0 else self.inner(ids.flip(1))


def test_where_values_decide_it_is_run_for_real():
    model = BySize().eval()
    ids, _ = tokens()
    assert model_cost(model, ids).flops == model_cost(model.inner, ids).flops
    calls = trace(model, ids, sites(model))[1]
    assert calls["inner.head"][0].input == (6, 16)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_small_model_runs_and_a_large_one_is_traced_and_both_count_what_torch_counts(name, monkeypatch):
    model, batch = network(name)
    args, kwargs = arguments(batch)
    given = kwargs or args
    ran = trace(model, given, sites(model))
    monkeypatch.setattr("rankfold.costs.count._REALLY", (0, 0))
    assert trace(model, given, sites(model)) == ran
    if "encoder" not in name:  # attention in one piece is nothing to torch's counter
        example = Example.of(given)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), evaluating(model):
            model(*example.args, **example.kwargs)
        assert ran[0] == counter.get_total_flops() // example.samples


def test_products_that_torch_has_in_one_piece_are_counted():
    a, b = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    with FlopCount() as count, torch.inference_mode():
        nn.functional.linear(a, torch.randn(7, 5))
        torch.einsum("bij,bjk->ik", a, b)
    assert count.total == 2 * 3 * 4 * 5 * 7 + 2 * 3 * 4 * 5 * 6


def test_counting_computes_nothing_and_copies_no_weights_of_a_large_model(monkeypatch):
    model, (x, _) = network("conv_net")
    expected = model_cost(model, x)
    monkeypatch.setattr("rankfold.costs.count._REALLY", (0, 0))
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_meta))

    def copies(*_):
        raise AssertionError("a parameter was copied")

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", copies)
    assert model_cost(model, x) == expected
    assert seen == [True]


def test_a_model_that_cannot_be_copied_is_run_for_real():
    model = nn.Sequential(nn.Linear(4, 3))
    model.history = model(torch.randn(2, 4))  # not a leaf: deepcopy refuses
    assert model_cost(model, torch.randn(2, 4)).flops == 2 * 4 * 3


def test_errors_of_the_model_itself_come_through():
    class Failing(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        model_cost(Failing(nn.Linear(4, 3)), torch.randn(2, 4))


def test_flops_are_those_of_one_sample_whatever_the_batch():
    model, _ = network("conv_net")
    expected = None
    for batch in (1, 2, 3, 7):
        x = torch.randn(batch, 3, 8, 8)
        with FlopCounterMode(display=False) as counter:
            model(x)
        found = model_cost(model, x).flops
        assert found * batch == counter.get_total_flops()
        assert found == (expected or found)
        expected = found


def test_layers_that_see_no_batch_axis_are_counted_exactly():
    """Positions are projected once for the whole batch: no share of one sample is a whole number."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.head = nn.Parameter(torch.randn(7, 9)), nn.Linear(11, 5)
            self.first, self.second = nn.Linear(9, 11), nn.Linear(9, 11)

        def forward(self, x):
            return self.head(x + self.first(self.position) * self.second(self.position))

    model = Positions()
    x = torch.randn(4, 7, 11)
    for batch in (1, 3, 4):
        made = plan(model, Ranks({"first": 2, "second": 1}), "truncate", example=x[:batch])
        assert made.after == model_cost(apply_(copy.deepcopy(model), made), x[:batch])
    of_data = plan(model, Ranks({"first": 2, "second": 1}), data=x)  # for one sample, whatever batches the data come in
    assert of_data.after == model_cost(apply_(copy.deepcopy(model), of_data), x[:1])


def test_a_model_that_takes_no_single_sample_is_counted_with_two():
    class Squeezing(nn.Sequential):
        def forward(self, x):
            rows, columns = x.squeeze().shape
            return super().forward(x.view(rows, columns))

    model, x = Squeezing(nn.Linear(6, 9), nn.Linear(9, 4)), torch.randn(4, 1, 6)
    with pytest.raises(ValueError, match="not enough values"):
        model(x[:1])
    assert plan(model, Ranks({"0": 2}), data=x).before == model_cost(model, x[:2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_examples_in_float32_fit_models_of_any_precision(dtype: torch.dtype):
    model, (x, _) = network("conv_net", dtype)
    assert model_cost(model, x).flops == model_cost(network("conv_net")[0], x).flops
    assert set(latencies({"a": model}, x, rounds=3)) == {"a"}
    plan(model, "params=0.7", "truncate", example=x)


@pytest.mark.parametrize("batch", [0, -1])
def test_less_than_one_sample_or_one_round_is_refused_with_the_remedy(batch: int):
    model, empty = nn.Linear(10, 4), torch.zeros(0, 10)
    for call in (
        lambda: model_cost(model, empty),
        lambda: plan(model, Ranks({"": 2}), "truncate", example=empty),
        lambda: latencies({"a": model}, empty),
    ):
        with pytest.raises(ValueError, match="holds no sample: give one with at least one along its first axis"):
            call()
    with pytest.raises(ValueError, match=f"a batch must hold at least 1 sample, got {batch}"):
        latencies({"a": model}, torch.zeros(1, 10), batch=batch)
    with pytest.raises(ValueError, match=f"rounds must be at least 1, got {batch}"):
        latencies({"a": model}, torch.zeros(1, 10), rounds=batch)
    assert latencies({"a": model}, torch.zeros(1, 10), rounds=1)["a"] > 0


def test_shared_tensors_count_once():
    layer = nn.Linear(8, 8)
    assert storage(nn.Sequential(layer, layer)) == (72, 288)
    model, _ = network("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert storage(model)[0] == sum({id(p): p.numel() for p in model.parameters()}.values())
    assert storage(nn.DataParallel(layer)) == (72, 288)
    norm = nn.BatchNorm1d(3)
    assert storage(norm) == (6, 4 * 6 + 4 * 6 + 8)


def test_layers_not_yet_initialised_are_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"1\.weight.*run the model once"):
        model_cost(model, torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"1\.weight.*run the model once"):
        plan(model, "params=0.5", "truncate", example=torch.randn(2, 4))
    model(torch.randn(2, 4))
    assert model_cost(model, torch.randn(2, 4)).params == 20 + 15


def test_counting_leaves_the_model_as_found():
    model, (x, _) = network("conv_net")
    model.train()
    model.norm.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    trace(model, x, sites(model))
    latencies({"a": model}, x, rounds=3)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast

    def fails():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_examples_of_every_kind():
    x, y = torch.randn(3, 4), torch.randn(3, 2)
    assert Example.of(x).samples == 3
    assert Example.of((x, y)).args[1] is y
    assert Example.of({"a": x}).kwargs["a"] is x
    nested = Example.of({"inputs": {"a": x, "b": [y]}, "flag": True})
    assert nested.samples == 3
    assert nested.to("meta").kwargs["inputs"]["b"][0].is_meta
    assert Example.of(nested) is nested
    with pytest.raises(ValueError, match="no tensor"):
        Example.of({"flag": True})


def test_batches_of_other_sizes_are_made_of_the_example():
    x, table = torch.arange(6.0).reshape(3, 2), torch.randn(5, 2)
    larger = with_batch((x, table, None), 7)
    assert larger.samples == 7
    assert torch.equal(larger.args[0], x[[0, 1, 2, 0, 1, 2, 0]])
    assert larger.args[1] is table
    assert torch.equal(with_batch({"x": x}, 1).kwargs["x"], x[:1])
    nested = with_batch({"inputs": {"a": x}}, 2)
    assert torch.equal(nested.kwargs["inputs"]["a"], x[:2])


def test_costs_add_and_subtract():
    a, b = Cost(5, 7, 20), Cost(1, 2, 4)
    assert a - b + b == a
    assert a + b == Cost(6, 9, 24)


def test_the_count_is_of_the_model_and_not_of_its_weight_property():
    model = nn.Sequential(LowRankLinear(6, 2, 5))
    assert model_cost(model, torch.randn(3, 6)) == Cost(12 + 10 + 5, 2 * (12 + 10), 4 * 27)


class Forces(nn.Module):
    """Slopes of an energy in what is put in, as a field of forces gives them; ``second``: and those of their size."""

    def __init__(self, inside: str, second: bool) -> None:
        super().__init__()
        self.inside, self.second = inside, second
        self.first = nn.Conv1d(6, 16, 3, padding=1, stride=2) if inside == "convolution" else nn.Linear(6, 16)
        self.read = nn.Linear(16, 16)
        self.steps = nn.GRU(16, 16, batch_first=True) if inside == "recurrent" else nn.Identity()
        self.energy = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            hidden = checkpoint(self._first, x, use_reentrant=False) if self.inside == "checkpoint" else self._first(x)
            hidden = torch.tanh(nn.functional.linear(hidden, self.read.weight))
            hidden = self.steps(hidden)[0] if self.inside == "recurrent" else hidden
            (slope,) = torch.autograd.grad(self.energy(hidden).square().sum(), x, create_graph=self.second)
            return torch.autograd.grad(slope.square().sum(), x)[0] if self.second else slope

    def _first(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x.mT).mT if self.inside == "convolution" else self.first(x))


@pytest.mark.parametrize(
    ("inside", "second"),
    [(inside, second) for inside in ("linear", "convolution", "recurrent") for second in (False, True)]
    + [("checkpoint", False)],
)
def test_gradients_that_a_forward_takes_cost_what_the_factors_take(inside: str, second: bool):
    """The products of a layer are made again for every gradient: thin ones, where the layer is factored."""
    model, x = Forces(inside, second).eval(), torch.randn(8, 5, 6)
    once = (5 if inside != "convolution" else 3) * 2 * 16 * (6 * (3 if inside == "convolution" else 1) + 16 + 4)
    assert model_cost(model, x[:1]).flops >= 2 * once  # the whole graph is walked back
    ranks = Ranks({s.name: 2 for s in sites(model).reducible})
    made = plan(model, ranks, "truncate", example=x[:1])
    small = apply_(copy.deepcopy(model), made)
    assert len(made.changed) == len(sites(model).reducible)
    assert made.before.flops == model_cost(model, x[:1]).flops
    assert made.after.flops == model_cost(small, x[:1]).flops
    assert made.after.flops < 0.7 * made.before.flops
