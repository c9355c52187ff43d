"""Deep LoRA: zero at the start, merged or exported without loss, read by PEFT."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from torch import Tensor, nn

from rankfold.adapt import deep_lora_, merge_, remove_, save_adapter, updates
from rankfold.train import Recipe, fit, parameter_groups
from rankfold.train.step.gradients import weight_gradients


class Network(nn.Module):
    """Names that end alike, and a layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 12)
        self.block = nn.ModuleDict({"fc": nn.Linear(12, 12, bias=False), "out": nn.Linear(12, 8)})
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc(x))
        x = torch.relu(self.block["out"](torch.relu(self.block["fc"](x))))
        return self.head(x)


def network() -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


def samples(count: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    return torch.randn(3, 10, generator=generator)[labels] + 0.6 * torch.randn(count, 10, generator=generator), labels


RECIPE = Recipe(epochs=6, batch_size=30, optimizer="adam", learning_rate=0.01, weight_decay=0.0)


def trained(**how) -> Network:
    model = network()
    deep_lora_(model, {"fc": 3, "block.fc": 4}, data=samples(), **how)
    fit(model, samples(), None, RECIPE)
    return model


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_it_begins_as_nothing_and_only_it_is_trained(depth):
    model, (x, _) = network(), samples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    deep_lora_(model, 2, depth=depth, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), expected)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{layer}.factors.{i}" for layer in ("fc", "block.fc", "block.out", "head") for i in range(depth)
    }
    fit(model, samples(), None, RECIPE)
    assert not torch.equal(model(x), expected)
    remove_(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_first_step_is_the_projected_gradient():
    model, data = network().double(), tuple(samples())
    data = (data[0].double(), data[1])
    (gradient,) = weight_gradients(model, [model.fc.weight], data)
    deep_lora_(model, {"fc": 3}, data=data)
    loss = nn.functional.cross_entropy(model(data[0]), data[1])
    loss.backward()
    adapted = updates(model)["fc"]
    with torch.no_grad():
        adapted.factors[0] -= adapted.factors[0].grad
    u, s, vh = torch.linalg.svd(gradient)
    torch.testing.assert_close(adapted.update().detach(), -(u[:, :3] * s[:3]) @ vh[:3])


def test_epsilon_is_the_paper_s_start():
    model = deep_lora_(network(), {"fc": 3}, epsilon=0.1, depth=3, scaling=2.0)
    update = updates(model)["fc"].update().detach()
    torch.testing.assert_close(torch.linalg.svdvals(update)[:3], torch.full((3,), 2e-3))


@pytest.mark.parametrize("scaling", [1.0, 0.5])
def test_merging_changes_nothing(scaling):
    model, (x, _) = trained(scaling=scaling), samples()
    expected = model(x).detach()
    read = updates(model)["block.fc"].weight
    merge_(model)
    assert type(model.fc) is nn.Linear
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model.block["fc"].weight, read)
    assert list(model.state_dict()) == list(network().state_dict())


def test_rates_and_hooks():
    model = deep_lora_(network(), 2, rate_scale=4.0)
    assert {group["lr"] for group in parameter_groups(model, 0.1)} == {0.1, 0.4}
    model, called = network(), []
    handle = model.fc.register_forward_hook(lambda *found: called.append(found))
    deep_lora_(model, 2)
    model(samples()[0])
    merge_(model)
    model(samples()[0])
    assert len(called) == 2
    handle.remove()
    model(samples()[0])
    assert len(called) == 2


@pytest.mark.parametrize("how", [{}, {"scaling": 0.5, "depth": 2}, {"epsilon": 0.3, "depth": 4}])
def test_peft_reads_it(how, tmp_path):
    peft = pytest.importorskip("peft")
    model, (x, _) = trained(**how), samples()
    save_adapter(model, tmp_path / "adapter", base_model="mine")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted([config["r"], *config["rank_pattern"].values()]) == [3, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(network(), tmp_path / "adapter")
    layers = {name for name, module in loaded.named_modules() if hasattr(module, "lora_A")}
    assert {name.removeprefix("base_model.model.") for name in layers} == {"fc", "block.fc"}
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    assert (loaded(x) - network()(x)).abs().max() > 0.05  # there was something to read
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(x), merge_(model)(x), rtol=1e-5, atol=1e-5)


def test_ranks_of_their_own_by_tolerance(tmp_path):
    peft = pytest.importorskip("peft")
    model, (x, _) = trained(), samples()
    with torch.no_grad():  # of rank 1 and 4
        updates(model)["fc"].factors[1].mul_(torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    save_adapter(model, tmp_path, tolerance=1e-6)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted([config["r"], *config["rank_pattern"].values()]) == [1, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(network(), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)


def one_alpha(directory) -> dict[str, Tensor]:
    """The updates as a reader has them that takes one alpha for all and divides it by each layer's own rank."""
    from safetensors.torch import load_file

    alpha = json.loads((directory / "adapter_config.json").read_text())["lora_alpha"]
    tensors, found = load_file(directory / "adapter_model.safetensors"), {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
            found[key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = alpha / len(a) * b @ a
    return found


def test_one_rank_and_one_alpha_for_readers_that_know_no_others(tmp_path):
    peft = pytest.importorskip("peft")
    model, (x, _) = trained(), samples()
    with torch.no_grad():  # of rank 1 and 4
        updates(model)["fc"].factors[1].mul_(torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    wanted = {name: adapted.update() for name, adapted in updates(model).items()}
    for uniform in (False, True):
        directory = save_adapter(model, tmp_path / str(uniform), tolerance=1e-6, uniform=uniform)
        near = [
            (found - wanted[name]).norm() < 1e-4 * wanted[name].norm() for name, found in one_alpha(directory).items()
        ]
        assert all(near) == uniform  # and without it such a reader is wrong
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(network(), directory)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "True" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})


def test_hugging_face_conv1d(tmp_path):
    peft = pytest.importorskip("peft")
    from transformers.pytorch_utils import Conv1D

    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(Conv1D(8, 10), nn.ReLU(), Conv1D(3, 8))

    model, (x, _) = make(), samples()
    deep_lora_(model, 2, data=samples())
    fit(model, samples(), None, RECIPE)
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merge_(model)(x), loaded(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "more", "says"),
    [
        ({"nowhere": 2}, {}, "there is no linear layer named 'nowhere' that can be adapted"),
        ({"block.out": 9}, {}, r"rank 9 was asked for, and ranks from 1 to 8 are possible"),
        (0, {}, r"rank 0 was asked for, and ranks from 1 to 10 are possible"),
        (True, {}, r"rank True was asked"),
        (2, {"where": "conv*"}, "no layer of this model matches"),
        (2, {"depth": 1}, "at least 2 factors"),
        (2, {"epsilon": -1.0}, "epsilon"),
        (2, {"scaling": 0.0}, "scaling"),
        (2, {"data": torch.zeros(4, 10)}, "no labels"),
    ],
)
def test_bad_input_changes_nothing(rank, more, says):
    model = network()
    with pytest.raises(ValueError, match=says):
        deep_lora_(model, rank, **more)
    assert not updates(model)
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        save_adapter(network(), tmp_path)
    model = deep_lora_(network(), 2)
    with pytest.raises(ValueError, match="already"):
        deep_lora_(model, 2)
    with pytest.raises(ValueError, match="tolerance"):
        save_adapter(model, tmp_path, tolerance=1.0)


# ---- layers that hang in several places ------------------------------------------------------------------------------


class Thrice(nn.Module):
    """One layer called three times under three names."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(10, 10)
        self.layers = nn.ModuleList([layer] * 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class SharedBlock(nn.Module):
    """A block under two names; the layer inside it hangs in the block alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(10, 10), nn.Tanh())
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def updated(model: nn.Module) -> nn.Module:
    deep_lora_(model, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for adapted in updates(model).values():
            for factor in adapted.factors:
                factor.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return model


def test_a_layer_in_several_places_is_no_adapter_of_peft(tmp_path):
    """PEFT adapts the first place of it alone, and would compute something else in silence."""
    model = updated(Thrice())
    with pytest.raises(ValueError, match=r"layers\.0 is the same layer as layers\.1, layers\.2, .* merge the updates"):
        save_adapter(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (x, _), before = samples(), len(list(Thrice().parameters()))
    expected = model(x).detach()
    torch.testing.assert_close(merge_(model)(x), expected)
    assert len(list(model.parameters())) == before


def test_a_layer_inside_a_shared_block_is_read_by_peft(tmp_path):
    peft = pytest.importorskip("peft")
    base, (x, _) = SharedBlock(), samples()
    model = updated(copy.deepcopy(base))
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(base(x), model(x), rtol=0.05)


# ---- told beforehand -------------------------------------------------------------------------------------------------


def test_a_rank_for_all_is_no_more_than_a_small_layer_has():
    model = network()
    with pytest.warns(
        UserWarning, match=r"rank 9 is more than .*: block\.out \(Linear 8×12\) gets 8, head .* gets 3\."
    ):
        deep_lora_(model, 9)
    assert {name: adapted.rank for name, adapted in updates(model).items()} == {
        "fc": 9, "block.fc": 9, "block.out": 8, "head": 3,
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"head \(Linear 3×8\): rank 4 was asked for, and ranks from 1 to 3 are possible"
    ):
        deep_lora_(network(), {"head": 4})


def test_an_optimizer_built_before_is_warned_of_and_trains_nothing():
    model, (x, _) = network(), samples()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"built earlier \(SGD\) holds fc.weight, .*frozen.* after deep_lora_"):
        deep_lora_(model, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(x).square().mean().backward()
    early.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
