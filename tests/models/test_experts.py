"""Mixtures of experts: all experts of a layer are two matrices, of which one factor is run once for each token."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2MoeConfig,
    Lfm2MoeForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)  # fmt: skip

import rankfold as rf
import rankfold.hub
from rankfold import costs
from rankfold.compress.spread import generator_of
from rankfold.compress.statistics import calibrate
from rankfold.compress.tokens import slope_of, token_metrics
from rankfold.layers.experts import LowRankEnter, LowRankLeave, SplitExperts, routed
from rankfold.objectives import CausalLanguageModel
from rankfold.observe import Samples, after
from rankfold.sites import Form, opened, sites

EXPERTS, WIDTH, INNER, VOCABULARY = 4, 16, 24, 50


def settings(width: int = WIDTH, blocks: int = 2, experts: int = EXPERTS, vocabulary: int = VOCABULARY) -> dict:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    }  # fmt: skip


def mixtral(inner: int = INNER, experts: int = EXPERTS, **more) -> nn.Module:
    return MixtralForCausalLM(
        MixtralConfig(**settings(**more), intermediate_size=inner, num_local_experts=experts, tie_word_embeddings=False)
    ).eval()


def qwen(inner: int = INNER, experts: int = EXPERTS, **more) -> nn.Module:
    width = settings(**more)["hidden_size"]
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(
        **settings(**more), intermediate_size=2 * width, moe_intermediate_size=inner, num_experts=experts,
        head_dim=width // 4, tie_word_embeddings=False,
    )).eval()  # fmt: skip


def qwen2(inner: int = INNER, experts: int = EXPERTS, **more) -> nn.Module:
    width = settings(**more)["hidden_size"]
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(
        **settings(**more), intermediate_size=2 * width, moe_intermediate_size=inner, num_experts=experts,
        shared_expert_intermediate_size=inner, tie_word_embeddings=False,
    )).eval()  # fmt: skip


def gpt_oss(inner: int = INNER, experts: int = EXPERTS, **more) -> nn.Module:
    """Matrices are stored transposed, gate and rest in turns, with biases and limits of the gate's own."""
    model = GptOssForCausalLM(GptOssConfig(
        **settings(**more), intermediate_size=inner, num_local_experts=experts, head_dim=8, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )).eval()  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("proj_bias"):
            nn.init.normal_(parameter)
    return model


def lfm2() -> nn.Module:
    """The function of its gate is no module."""
    return Lfm2MoeForCausalLM(Lfm2MoeConfig(
        **settings(), intermediate_size=INNER, moe_intermediate_size=INNER, num_experts=EXPERTS, num_dense_layers=0,
        layer_types=["full_attention"] * 2,
    )).eval()  # fmt: skip


MODELS = {"mixtral": mixtral, "qwen3": qwen, "qwen2": qwen2, "gpt-oss": gpt_oss, "lfm2": lfm2}


def tokens(count: int = 32, length: int = 10, vocabulary: int = VOCABULARY) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(0))}]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def expert_sites(model: nn.Module):
    return [site for site in sites(model) if site.layer.experts]


@pytest.mark.parametrize("backend", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", MODELS)
def test_taken_apart_experts_compute_the_same_as_any_backend(name, backend):
    exact = backend != "grouped_mm"  # which takes no float64
    model, data = MODELS[name]().to(torch.float64 if exact else torch.float32), tokens()
    model.set_experts_implementation(backend)
    with torch.no_grad():
        expected = model(**data[0]).logits
        with opened(model):
            assert any(isinstance(module, SplitExperts) for module in model.modules())
            close = {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(model(**data[0]).logits, expected, **close)
    assert not any(isinstance(module, SplitExperts) for module in model.modules())


def test_rows_meet_the_matrix_of_their_expert_and_none_beyond_the_last():
    weight, x = torch.randn(3, 5, 4), torch.randn(6, 2, 4)
    index = torch.tensor([[0, 2], [2, 2], [3, 0], [0, 0], [3, 3], [2, 0]])  # expert 1 is never asked; 3 is none
    by_hand = torch.zeros(6, 2, 5)
    for token in range(6):
        for slot in range(2):
            if index[token, slot] < 3:
                by_hand[token, slot] = weight[index[token, slot]] @ x[token, slot]
    torch.testing.assert_close(routed(x, index, weight), by_hand)
    assert routed(x[:0], index[:0], weight).shape == (0, 2, 5)


@pytest.mark.parametrize("name", MODELS)
def test_full_rank_reproduces_the_original(name):
    model, data = MODELS[name](), tokens()
    ranks = {site.name: min(site.shape) for site in expert_sites(model)}
    assert len(ranks) == 4
    small = rf.apply_(copy.deepcopy(model), rf.plan(model, rf.Ranks(ranks), data=data))
    assert sum(isinstance(module, LowRankEnter | LowRankLeave) for module in small.modules()) == 4
    with torch.no_grad():
        torch.testing.assert_close(small(**data[0]).logits, model(**data[0]).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [mixtral, qwen, gpt_oss])
def test_nearly_everything_is_a_site(make):
    """The models that the goal names: width 256, four blocks, eight experts, a vocabulary of 1,000."""
    with torch.device("meta"):
        model = make(inner=256, experts=8, width=256, blocks=4, vocabulary=1000)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert sum(site.groups * site.shape[0] * site.shape[1] for site in sites(model).reducible) >= 0.9 * total


@pytest.mark.parametrize("make", [mixtral, qwen, gpt_oss])
def test_half_the_parameters_go_and_the_shared_products_run_once(make, tmp_path):
    model, data = make(), tokens(128)
    plan = rf.plan(model, "params=0.5", data=data, objective="causal-lm")
    assert plan.after.params <= 0.5 * plan.before.params
    small = rf.apply_(copy.deepcopy(model), plan)
    assert costs.check(plan.after, small, data[0]["input_ids"][:1]) == ""
    factored = {name: m for name, m in small.named_modules() if isinstance(m, LowRankEnter | LowRankLeave)}
    assert factored
    rows = Counter()
    watched = {
        (m.down if isinstance(m, LowRankEnter) else m.up): lambda module, args, kwargs, out: rows.update({
            module: out.reshape(-1, out.shape[-1]).shape[0]
        })
        for m in factored.values()
    }  # fmt: skip
    with torch.no_grad(), after(None, watched):
        expected = small(**data[0]).logits
    assert set(rows.values()) == {data[0]["input_ids"].numel()}  # each token once, however many experts it is sent to
    rf.save(small, plan, tmp_path / "small")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
        assert torch.equal(again(**data[0]).logits, expected)
        dense = rankfold.hub.to_dense(again)
        assert dense.state_dict().keys() == model.state_dict().keys()
        torch.testing.assert_close(dense(**data[0]).logits, expected, rtol=1e-4, atol=1e-5)


def test_costs_are_those_of_the_tokens_that_are_sent():
    model, data = mixtral(), tokens()
    name = "model.layers.0.mlp.experts"
    plan = rf.plan(model, rf.Ranks({f"{name}.enter": 3, f"{name}.leave": 5}), data=data)
    (m, n), (p, q) = (2 * INNER * EXPERTS, WIDTH), (WIDTH, INNER * EXPERTS)
    dense = 2 * (m * n + p * q) // EXPERTS  # for each token, which is sent to two experts
    lean = 3 * (n + 2 * m // EXPERTS) + 5 * (p + 2 * q // EXPERTS)
    assert plan.before.flops - plan.after.flops == 2 * 10 * (dense - lean)
    assert plan.before.params - plan.after.params == m * n + p * q - 3 * (m + n) - 5 * (p + q)


def test_the_shared_factor_is_the_best_one_for_what_enters():
    """Where nothing weighs the outputs: against the truncated decomposition of the stack times a root of the moment."""
    model, data = mixtral().double(), tokens(128)
    name = "model.layers.1.mlp.experts.enter"
    seen = []
    with torch.no_grad(), opened(model), after(model, {name: lambda module, args, kwargs, out: seen.append(args[0])}):
        model(**data[0])
        stack = model.get_submodule(name).weight.detach().flatten(0, 1)
    x = torch.cat(seen)
    plan = rf.plan(
        model, rf.Ranks({name: 5}), data=data,
        calibration=rf.Calibration(statistics=calibrate(model, data, sites(model), metric_samples=0)),
    )  # fmt: skip
    small = rf.apply_(copy.deepcopy(model), plan)
    product = small.get_submodule(name).weight.detach().flatten(0, 1)
    lost = float((x @ (stack - product).mT).square().sum())
    root = torch.linalg.cholesky(x.mT @ x)
    best = float(torch.linalg.svdvals(stack @ root)[5:].square().sum())
    assert lost == pytest.approx(best, rel=1e-6)


def test_the_metric_of_what_enters_is_that_of_the_stack():
    """WᵀDW from gradients at the input: against gradients at the outputs of all experts, each times its matrix."""
    model, data = mixtral().double(), tokens(4, 6)
    found, objective = sites(model), CausalLanguageModel()
    name, kept = "model.layers.0.mlp.experts.enter", {}
    with opened(model):
        metric = token_metrics(model, Samples(data, 4, 4), found, objective).fisher[name]
        weight = model.get_submodule(name).weight.detach()
        with after(model, {name: lambda module, args, kwargs, out: kept.update(index=args[1], out=out)}):
            output = model(**data[0])
    answer = next(each for each in objective.answers(output, data[0]) if each.classes)
    slope = slope_of(answer.values.detach(), generator_of(-1, 0))
    counted = slope.shape[:-1].numel() if answer.counted is None else int(answer.counted.sum())
    slope = slope if answer.counted is None else slope * answer.counted.unsqueeze(-1)
    (gradient,) = torch.autograd.grad((answer.values * slope).sum(), kept["out"])
    rows = torch.einsum("tkm,tkmn->tn", gradient, weight[kept["index"]])
    torch.testing.assert_close(metric, 0.5 * rows.mT @ rows / counted, rtol=1e-5, atol=1e-9)


def test_an_expert_without_a_token_is_named_and_still_computes():
    model, data = mixtral(experts=16), tokens(64, vocabulary=3)  # three kinds of tokens reach few of the experts
    given: list[Tensor] = []
    watch = {"model.layers.0.mlp.experts.enter": lambda module, args, kwargs, out: given.append(args[1])}
    with torch.no_grad(), opened(model), after(model, watch):
        model(**data[0])
    idle = sorted(set(range(16)) - set(torch.cat(given).flatten().tolist()))
    assert idle
    plan = rf.plan(model, "params=0.6", data=data)
    entry = next(entry for entry in plan.entries if entry.site == "model.layers.0.mlp.experts.enter")
    assert f"these experts were given no token: {', '.join(map(str, idle[:8]))}" in entry.note
    small = rf.apply_(copy.deepcopy(model), plan)
    layer = small.get_submodule("model.layers.0.mlp.experts.enter")
    assert bool(layer.weight[idle[0]].any())


def test_experts_without_a_gate_are_taken_apart():
    from transformers import NemotronHConfig
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            config = NemotronHConfig(hidden_size=WIDTH, moe_intermediate_size=INNER, n_routed_experts=EXPERTS)
            self.gate, self.experts = nn.Linear(WIDTH, EXPERTS), NemotronHExperts(config)
            for parameter in self.experts.parameters():
                nn.init.normal_(parameter, std=0.3)

        def forward(self, x):
            weights, index = self.gate(x).softmax(-1).topk(2)
            return self.experts(x, index, weights)

    model, x = Routed().eval(), torch.randn(64, WIDTH)
    with torch.no_grad():
        expected = model(x)
        with opened(model):
            torch.testing.assert_close(model(x), expected)
    assert [site.name for site in expert_sites(model)] == ["experts.enter", "experts.leave"]


def test_experts_that_are_kept_in_an_unknown_way_are_left_out():
    model = gpt_oss()
    for block in model.model.layers:
        block.mlp.experts.other = nn.Parameter(torch.ones(3))
    assert not expert_sites(model)
    left = dict(sites(model).left_out)
    assert "knows no layout with these parameters" in left["model.layers.0.mlp.experts.gate_up_proj"]


def test_biases_of_experts_stay_and_are_listed():
    model = gpt_oss()
    left = dict(sites(model).left_out)
    assert left["model.layers.0.mlp.experts.gate_up_proj_bias"] == "a vector for each expert: nothing to factor"
    assert left.keys() <= dict(model.named_parameters()).keys()
    held = dict(model.named_parameters())
    with opened(model):  # what the model's own code may read
        inside = model.get_submodule("model.layers.0.mlp.experts")
        for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"):
            assert getattr(inside, name) is held[f"model.layers.0.mlp.experts.{name}"]


def test_training_reaches_every_expert():
    model, data = qwen(), tokens()
    small = rf.apply_(model, rf.plan(model, "params=0.6", data=data)).train()
    logits = small(**data[0]).logits
    F.cross_entropy(logits.flatten(0, 1), data[0]["input_ids"].flatten()).backward()
    for module in small.modules():
        if isinstance(module, LowRankEnter | LowRankLeave):
            assert bool(module.up.weight.grad.any())
            assert bool(module.down.weight.grad.any())


def test_forms_of_experts():
    for site in expert_sites(mixtral()):
        assert site.forms == {Form.KEEP, Form.SHARED}
