"""Adapters made smaller and several made one: what PEFT would merge, cut once, the error as said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import rankfold as rf
from rankfold.adapt import Adapter, combine, read_adapter, write_adapter

peft = pytest.importorskip("peft")


def network() -> nn.Module:
    torch.manual_seed(0)
    first = {"table": nn.Embedding(9, 12), "fc": nn.Linear(12, 14)}
    return Network(nn.ModuleDict(first | {"conv": nn.Conv1d(14, 6, 3), "out": nn.Linear(4, 5)})).eval()


class Network(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.parts["fc"](self.parts["table"](tokens))
        return self.parts["out"](self.parts["conv"](x.mT))


def trained(place, seed: int, **how) -> tuple[str, dict[str, Tensor]]:
    """An adapter as PEFT saves it, its B no longer zero, and the updates that PEFT itself computes."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": ["fc", "conv", "table"]} | how)
    model = peft.get_peft_model(network(), config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(place)
    layers = {name: module for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    return str(place), {name: module.get_delta_weight("default").detach() for name, module in layers.items()}


def update(adapter: Adapter, name: str) -> Tensor:
    a, b = adapter.pairs[name]
    product = adapter.scaling * b @ a
    return product.T if name in adapter.lookups else product


KINDS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"fc": 2, "conv": 4}, "alpha_pattern": {"conv": 5}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_read_as_peft_reads_it(kind, tmp_path):
    place, wanted = trained(tmp_path, 1, **KINDS[kind])
    found = read_adapter(place)
    assert set(found.pairs) == set(wanted)
    assert found.lookups == {"parts.table"}
    for name, delta in wanted.items():
        torch.testing.assert_close(update(found, name).reshape(delta.shape), delta, rtol=1e-5, atol=1e-6)


def test_a_scaling_that_half_precision_would_round_is_kept(tmp_path):
    place, _ = trained(tmp_path, 1)  # 7 / 3
    file = tmp_path / "adapter_model.safetensors"
    state = {name: value.bfloat16() for name, value in load_file(file).items()}
    save_file(state, file)
    pairs = read_adapter(place).pairs
    for name, (a, b) in pairs.items():
        assert a.dtype == b.dtype == torch.float32
        given = next(
            value for key, value in state.items() if f"{name}.lora_B" in key or f"{name}.lora_embedding_B" in key
        )
        torch.testing.assert_close(b, 7 / 3 * given.float().flatten(1), rtol=1e-6, atol=0)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"lora_alpha": 6}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert all(b.dtype == torch.bfloat16 for _, b in read_adapter(place).pairs.values())  # 6 / 3 rounds nothing


def test_a_smaller_adapter_is_the_best_of_its_rank(tmp_path):
    place, wanted = trained(tmp_path, 1)
    found = combine([place], "rank=2")
    squares = {name: torch.linalg.svdvals(delta.double().flatten(1)).square() for name, delta in wanted.items()}
    for layer in found.layers:
        best = float((squares[layer.name][2:].sum() / squares[layer.name].sum()) ** 0.5)
        assert layer.error == pytest.approx(best, rel=1e-5)
    whole = sum(float(s[2:].sum()) for s in squares.values()) / sum(float(s.sum()) for s in squares.values())
    assert found.error == pytest.approx(whole**0.5, rel=1e-5)


def test_several_become_one_and_peft_reads_it(tmp_path):
    first, one = trained(tmp_path / "1", 1)
    second, two = trained(tmp_path / "2", 2, target_modules=["fc", "conv"], use_rslora=True)
    found = combine([first, second], "rank=6", weights=[1.0, -0.5])
    assert found.adapter.ranks == {"parts.table": 3, "parts.fc": 6, "parts.conv": 6}
    assert found.error < 1e-6
    read = peft.PeftModel.from_pretrained(network(), found.save(tmp_path / "both"))
    layers = {n: m for n, m in read.base_model.model.named_modules() if hasattr(m, "lora_A")}
    for name, delta in one.items():
        wanted = delta - 0.5 * two.get(name, torch.zeros_like(delta))
        torch.testing.assert_close(layers[name].get_delta_weight("default"), wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one finite number for each of the 2 adapters"):
        combine([first, second], "rank=6", weights=[1.0])


def test_a_share_is_of_what_the_adapters_store(tmp_path):
    place, _ = trained(tmp_path, 1)
    found = combine([place], "params=0.5")
    assert found.model_params == 3 * (21 + 26 + 48)
    assert found.params <= found.model_params / 2
    with pytest.raises(rf.BudgetError, match="too few for rank 1 in any layer"):
        combine([place], "params=3")


def test_modules_to_save_come_along_from_one_and_are_told_of_several(tmp_path):
    first, _ = trained(tmp_path / "1", 1, modules_to_save=["parts.out"])
    assert set(combine([first], "rank=2").adapter.whole) == {"parts.out.weight", "parts.out.bias"}
    second, _ = trained(tmp_path / "2", 2)
    found = combine([first, second], "rank=2")
    assert not found.adapter.whole
    assert {item.name for item in found.left_out} == {"parts.out.weight", "parts.out.bias"}


def test_adapters_of_other_networks_do_not_go_together(tmp_path):
    first, _ = trained(tmp_path / "1", 1)
    write_adapter(Adapter({"parts.fc": (torch.ones(1, 5), torch.ones(4, 1))}), tmp_path / "2")
    with pytest.raises(ValueError, match=r"parts.fc has different sizes: 4×5 and 14×12. These adapters do not belong"):
        combine([first, tmp_path / "2"], "rank=2")


def of(*names: str, base: str = "") -> Adapter:
    return Adapter({name: (torch.ones(1, 5), torch.ones(4, 1)) for name in names}, base_model=base)


LLAMA = "model.layers.0.self_attn.q_proj"
STRANGERS = {
    "a head in front": (of(LLAMA), of("layers.0.self_attn.q_proj"), "differ by 'model.' in front of their names"),
    "a head in front, other layers": (of("layers.1.mlp.up_proj", base="a"), of(LLAMA, base="a"), "differ by 'model.'"),
    "two kinds of model": (of(LLAMA), of("transformer.h.0.attn.c_attn"), "have no layer in common"),
    "like blocks of two bases": (
        of("encoder.layer.0.query", base="a"),
        of("encoder.layer.0.key", base="b"),
        "no layer",
    ),
    "names without blocks": (of("fc1"), of("out"), "have no layer in common"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_names_of_different_networks_do_not_go_together(kind):
    first, second, told = STRANGERS[kind]
    for pair in [first, second], [second, first], [first, first, second]:
        with pytest.raises(ValueError, match=told):
            combine(pair, "rank=2")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (of(LLAMA), of("model.layers.3.mlp.up_proj")),
        (of("fc1", base="a"), of("out", base="a")),
        (of("fc1", "out"), of("out", base="a")),
    ],
)
def test_other_layers_of_one_network_go_together(first, second):
    found = combine([first, second], "rank=2")
    assert found.adapter.ranks.keys() == {*first.pairs, *second.pairs}
    assert not any("bases" in note for note in found.notes)


def test_other_bases_of_the_same_layers_are_noted():
    found = combine([of("fc", base="a"), of("fc", base="b")], "rank=2")
    assert "the adapters were trained on different bases, a, b" in found.notes[0]


FAULTS = {
    "DoRA": ({"use_dora": True, "target_modules": ["fc"]}, None, "a DoRA adapter also scales columns"),
    "biases": ({"bias": "lora_only"}, None, "the adapter also changes biases"),
    "repeated layers": (
        {},
        lambda config: config.update(layer_replication=[[0, 1], [0, 1]]),
        "the adapter repeats layers of its base",
    ),
    "a start that is taken off the base": (
        {"init_lora_weights": "pissa_niter_4", "target_modules": ["fc"]},
        None,
        "started with init_lora_weights=pissa_niter_4",
    ),
    "a few tokens": (
        {},
        lambda config: config.update(alora_invocation_tokens=[5, 7]),
        "the adapter works only behind certain tokens",
    ),
    "blocks": (
        {"target_modules": ["fc"]},
        lambda config: config.update(use_bdlora={"nblocks": 2}),
        "the adapter stores the blocks of a matrix side by side",
    ),
    "trained tokens": (
        {"trainable_token_indices": {"table": [1, 2]}, "target_modules": ["fc"]},
        None,
        r"also trains rows of an embedding themselves \(trainable_token_indices\): merge it",
    ),
    "parameters of experts": (
        {},
        lambda config: config.update(target_parameters=["experts.gate_up_proj"]),
        r"also trains parameters that belong to no linear layer, .* \(target_parameters\): merge it",
    ),
    "means of inputs": (
        {},
        lambda config: config.update(use_qalora=True),
        "the adapter works on means of its inputs",
    ),
    "a base that is cut": (
        {},
        lambda config: config.update(kasa_config={"beta": 1e-4}),
        "cuts the small directions of its base off",
    ),
    "several adapters": (
        {},
        lambda config: config.update(arrow_config={"top_k": 2}),
        "chooses between several adapters for each token",
    ),
    "another kind": (
        {},
        lambda config: config.update(peft_type="IA3"),
        "the adapter is of type IA3, and only LORA is read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_adapters_are_refused_in_one_line(fault, tmp_path):
    how, change, told = FAULTS[fault]
    place, _ = trained(tmp_path, 1, **how)
    if change is not None:
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        change(config)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=told) as error:
        combine([place], "rank=2")
    assert "\n" not in str(error.value)


def test_damaged_adapters_are_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="give the folder of an adapter"):
        read_adapter(tmp_path / "none")
    place, _ = trained(tmp_path, 1)
    weights = tmp_path / "adapter_model.safetensors"
    state = load_file(weights)
    state["base_model.model.parts.fc.lora_A.weight"][0, 0] = float("inf")
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"parts.fc.lora_A.weight holds values that are NaN or infinite"):
        read_adapter(place)
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged") as error:
        read_adapter(place)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "far"), [(torch.bfloat16, 1e-6), (torch.float16, 1e-6), (torch.float32, 1e-6), (torch.float64, 1e-14)]
)
def test_the_sum_is_no_coarser_than_the_error_that_is_told(kind, far):
    torch.manual_seed(0)
    given = [Adapter({"0": (torch.randn(3, 32, dtype=kind), torch.randn(16, 3, dtype=kind))}) for _ in range(2)]
    found = combine(given, "rank=6", weights=[1 / 3, 0.7])
    wanted = sum(w * each.pairs["0"][1].double() @ each.pairs["0"][0].double() for w, each in zip((1 / 3, 0.7), given))
    a, b = found.adapter.pairs["0"]
    assert found.error < far
    assert float((b.double() @ a.double() - wanted).norm() / wanted.norm()) < far


def test_dora_in_memory_is_refused_as_its_folder_is():
    plain = of("fc", "out")
    norms = {"out": torch.ones(len(plain.pairs["out"][1]))}
    with pytest.raises(ValueError, match=r"^out: a DoRA adapter also scales columns"):
        combine([plain, replace(plain, magnitudes=norms)], "rank=1")
