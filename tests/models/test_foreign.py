"""Weights that are no ordinary tensors: listed with the reason, never offered, counted as what they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import rankfold as rf
from rankfold import costs
from rankfold.sites import fingerprint, sites
from rankfold.store import StoreError
from rankfold.zoo import ZooError
from rankfold.zoo.weights import load_weights

X = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
METHODS = ("truncate", "project", "sequential")


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 16)).eval()


class Scaled(Tensor):
    """Whole numbers and a scale for each row, as libraries of quantisation store a weight: of another dtype in name."""

    whole: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, whole: Tensor, scale: Tensor) -> Scaled:
        return Tensor._make_wrapper_subclass(cls, whole.shape, dtype=scale.dtype, requires_grad=False)

    def __init__(self, whole: Tensor, scale: Tensor) -> None:
        self.whole, self.scale = whole, scale

    def __tensor_flatten__(self):
        return ["whole", "scale"], None

    def __repr__(self) -> str:
        return "Scaled()"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.whole * weight.scale, *bias, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].whole, args[0].scale)
        if func is torch.ops.aten.copy_.default:
            args[0].whole.copy_(args[1].whole)
            return args[0]
        raise NotImplementedError(f"{func} of Scaled")


def scaled(model: nn.Module, name: str) -> nn.Module:
    layer = model.get_submodule(name)
    size = layer.weight.detach().abs().amax(1, keepdim=True) / 127
    layer.weight = nn.Parameter(Scaled((layer.weight.detach() / size).round().to(torch.int8), size), False)
    return model


@contextmanager
def engine() -> Iterator[None]:
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        pytest.skip("this torch has no quantized engine")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engines[-1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.quantized.engine = before


def dynamic(model: nn.Module, *which: object) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, set(which) or {nn.Linear})


# ---- quantised layers of torch --------------------------------------------------------------------------------------


def test_a_quantised_network_is_listed_counted_and_never_offered():
    with engine():
        model, dense = dynamic(network()), network()
        found = sites(model)
        assert not found.items
        assert dict(found.left_out) == dict.fromkeys("024", "quantized: compress first, quantize afterwards")
        cost, whole = costs.model_cost(model, X[:1]), costs.model_cost(dense, X[:1])
        assert (cost.params, cost.flops) == (whole.params, whole.flops)
        weights = sum(p.numel() for p in dense.parameters() if p.dim() == 2)
        assert weights < cost.bytes < weights + 4 * 112 + 100  # a byte for each weight, and the biases as they were
        for method in METHODS:
            with pytest.raises(ValueError, match=r"cannot be met"):
                rf.plan(model, "params=0.9", method, X)


def test_other_weights_of_a_quantised_network_are_another_network():
    with engine():
        one, other = network(), network()
        with torch.no_grad():
            other[2].weight.mul_(0.5)
        assert fingerprint(dynamic(one)) == fingerprint(dynamic(network()))
        assert fingerprint(dynamic(one)) != fingerprint(dynamic(other))


def test_what_is_not_quantised_is_planned_beside_it():
    with engine():
        model = torch.ao.quantization.quantize_dynamic(network(), {"2": torch.ao.quantization.default_dynamic_qconfig})
        plan = rf.plan(model, "params=0.8", "project", X)
        assert {entry.site for entry in plan.entries} == {"0", "4"}
        small = rf.apply_(copy.deepcopy(model), plan)
        assert costs.check(plan.after, small, X[:2]) == ""
        with pytest.raises(StoreError, match=r"save the model before it is quantized"):
            rf.save(small, plan, "nowhere")


def test_recurrent_and_static_kinds_are_counted_too():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(16, 24, batch_first=True), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    class Stubbed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.conv(self.enter(x)))

    with engine():
        dense = Recurrent().eval()
        model = dynamic(copy.deepcopy(dense), nn.LSTM)
        assert dict(sites(model).left_out)["lstm"].startswith("quantized")
        assert costs.storage(model)[0] == costs.storage(dense)[0]
        with pytest.warns(costs.UncountedWarning, match="quantized_lstm"):
            costs.model_cost(model, torch.randn(1, 5, 16))
        dense, images = Stubbed().eval(), torch.randn(2, 3, 8, 8)
        dense.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
        prepared = torch.ao.quantization.prepare(dense)
        prepared(images)
        assert "prepared for quantization" in dict(sites(prepared).left_out)["conv.weight"]
        with pytest.raises(ValueError, match=r"^conv.weight is prepared for quantization, .* compress first"):
            rf.plan(prepared, "params=0.9", "truncate", images)
        model = torch.ao.quantization.convert(prepared)
        cost = costs.model_cost(model, images[:1])
        assert (cost.params, cost.flops) == (3 * 8 * 9 + 8, 2 * 36 * 8 * 27)


# ---- tensors of other libraries -------------------------------------------------------------------------------------


def test_a_tensor_of_another_library_is_named_and_counted_by_its_parts():
    model = scaled(network(), "2")
    reason = dict(sites(model).left_out)["2.weight"]
    assert reason.startswith("a tensor of test_foreign (Scaled)")
    assert reason.endswith("compress first, convert afterwards")
    params, size = costs.storage(model)
    whole = costs.storage(network())
    assert params == whole[0]
    assert size == whole[1] - 48 * 48 * 4 + 48 * 48 + 48 * 4
    for method in METHODS:
        plan = rf.plan(model, "params=0.8", method, X)
        assert {entry.site for entry in plan.entries} == {"0", "4"}
        small = rf.apply_(copy.deepcopy(model), plan)
        assert isinstance(small[2].weight, Scaled)
        assert costs.check(plan.after, small, X[:2]) == ""
    with pytest.raises(StoreError, match=r"2\.weight: a tensor of test_foreign"):
        rf.save(small, plan, "nowhere")


def test_layers_beside_them_are_trained_and_adapted():
    labels = torch.arange(40) % 16
    model = rf.deep_lora_(scaled(network(), "2"), 2)
    assert set(rf.adapt.updates(model)) == {"0", "4"}
    before = model[2].weight.whole.clone()
    rf.fit(model, (X, labels), None, rf.Recipe(epochs=1, batch_size=20))
    assert torch.equal(model[2].weight.whole, before)


def test_torchao_where_it_is_installed():
    quantization = pytest.importorskip("torchao.quantization")
    model = network()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "2")
    assert dict(sites(model).left_out)["2.weight"].startswith("a tensor of torchao")
    plan = rf.plan(model, "params=0.8", "project", X)
    assert costs.check(plan.after, rf.apply_(copy.deepcopy(model), plan), X[:2]) == ""


def test_whole_numbers_with_scales_in_buffers_are_listed():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
            self.register_buffer("scales", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.qweight * self.scales)

    model = nn.Sequential(nn.Linear(8, 8), Packed())
    assert dict(sites(model).left_out) == {"1": "quantized: compress first, quantize afterwards"}


# ---- pieces ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_sharded_weights_are_refused_by_name(alone):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model, mesh = network(), init_device_mesh("cpu", (1,))
    model[2].weight = nn.Parameter(distribute_tensor(model[2].weight.detach(), mesh, [Shard(0)]))
    assert dict(sites(model).left_out)["2.weight"].startswith("sharded over processes (DTensor): gather")
    for method in METHODS:
        with pytest.raises(
            ValueError, match=r"^2\.weight is sharded over processes \(DTensor\): gather .* one process$"
        ):
            rf.plan(model, "params=0.8", method, X)
    made = rf.plan(network(), "params=0.8", "truncate", example=X)
    for measured in (lambda: rf.apply_(model, made), lambda: rf.model_cost(model, X)):
        with pytest.raises(ValueError, match=r"is sharded over processes \(DTensor\): gather .* one process$"):
            measured()


# ---- files ----------------------------------------------------------------------------------------------------------


def test_quantised_files_are_not_taken_into_a_float_model(tmp_path):
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = {name: value.mul(20).to(torch.int8) if value.dim() > 1 else value for name, value in before.items()}
    save_file(whole, tmp_path / "int8.safetensors")
    torch.save(whole, tmp_path / "int8.pt")
    files = {"int8.safetensors": "0.weight in int8, and the model computes in float32", "int8.pt": "in int8"}
    with engine():
        torch.save(dynamic(network()).state_dict(), tmp_path / "dynamic.pt")
        kept = {name: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) for name, value in before.items()}
        torch.save(kept, tmp_path / "kept.pt")
    files |= {"dynamic.pt": "quantized weights|could run code", "kept.pt": "quantized weights|could run code"}
    for name, sentence in files.items():
        with pytest.raises(ZooError, match=sentence):
            load_weights(model, tmp_path / name)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---- TorchScript ----------------------------------------------------------------------------------------------------


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x)))


@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)], ids=["script", "trace"])
def test_torchscript_as_the_whole_or_as_a_part(make):
    whole = make(network())
    assert not sites(whole).items
    with pytest.raises(ValueError, match=r"^the model is TorchScript: compress the network first"):
        rf.plan(whole, "params=0.8", "truncate", X)
    model = Around(make(network())).eval()
    assert [site.name for site in sites(model)] == ["head"]
    assert {name for name, why in sites(model).left_out if why.startswith("TorchScript")} == {
        f"inner.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")
    }
    for method in METHODS:
        plan = rf.plan(model, rf.Ranks({"head": 3}), method, X)
        small = rf.apply_(copy.deepcopy(model), plan)
        assert costs.check(plan.after, small, X[:2]) == ""
    rf.deep_lora_(model, 2)
    assert set(rf.adapt.updates(model)) == {"head"}
    for way in (rf.dlrt_, rf.overparametrize_, lambda network: rf.deep_lora_(network, rank=2)):
        with pytest.raises(ValueError, match=r"\(\S+, …: TorchScript: compress the network first") as told:
            way(whole)
        assert str(told.value).count("TorchScript") == 1  # one reason, once


# ---- looking computes nothing ---------------------------------------------------------------------------------------


def test_looking_at_a_compressed_network_computes_nothing():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    convolutions = nn.Sequential(
        nn.Conv2d(6, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 6, 3), nn.Flatten(), nn.Linear(384, 20)
    )
    images = torch.randn(4, 6, 8, 8)
    models = [
        rf.apply_(network(), rf.plan(network(), rf.Ranks({"0": 3, "2": 4}), "truncate", X)),
        rf.deep_lora_(network(), 2),
        rf.overparametrize_(network(), 3),
    ]
    for ranks, method in (({"0": 3, "2": 2, "4": 4}, "truncate"), ({"0": 5}, "tucker")):
        plan = rf.plan(convolutions, rf.Ranks(ranks), method, images)
        models.append(rf.apply_(copy.deepcopy(convolutions), plan))
    for model in models:
        with Watch():
            assert len(sites(model))
        assert not [name for name in seen if any(part in name for part in ("mm", "matmul", "conv", "mul", "einsum"))]
