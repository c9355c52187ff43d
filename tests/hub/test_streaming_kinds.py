"""Models of other kinds than a decoder go through block by block as they go through in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import VOCABULARY

import rankfold as rf
from rankfold import hub
from rankfold.pipeline import Tell

transformers = pytest.importorskip("transformers")
MEMORY = 300_000_000
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "initializer_range": 0.2,
}  # fmt: skip


def texts(samples: int, seed: int, labels: Any = lambda ids: {}, length: int = 12) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (samples, length), generator=draw)
    return [{"input_ids": part, **labels(part)} for part in ids.split(4)]


def reversed_(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"labels": ids.flip(1)}


def by_first(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"labels": ids[:, 0] % 3}


def t5(place: Path, kind: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).to(kind).save_pretrained(place)
    return place


def classifier(place: Path) -> Path:
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, num_labels=3)).save_pretrained(place)
    return place


def whole(dense: Path, data: Any, names: set[str], batch: int) -> rf.Plan:
    """The plan of the same job in memory, its objective told by model and data."""
    known = rf.profile(
        hub.opened(dense), data[0], method="sequential", where=lambda name, module: name in names,
        calibration=rf.Calibration(samples=32, batch_size=batch, memory=MEMORY),
    )  # fmt: skip
    return known.plan("params=0.8")


def test_the_head_of_a_classifier_is_copied_as_it_lies(tmp_path):
    dense = classifier(tmp_path / "dense")
    data = tuple(texts(samples, seed, by_first) for seed, samples in enumerate((16, 4, 4)))
    found = rf.stream(dense, data, "params=0.8", tmp_path / "small", memory=MEMORY)
    assert {entry.site.partition(".")[0] for entry in found.plan.entries} == {"bert"}
    one, other = hub.opened(dense), hub.opened(tmp_path / "small")
    assert torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_types_are_those_that_transformers_loads(tmp_path, kind):
    dense = t5(tmp_path / "dense", kind)
    types = {name: tensor.dtype for name, tensor in hub.opened(dense).state_dict().items()}
    assert {name: tensor.dtype for name, tensor in hub.skeleton(dense).state_dict().items()} == types
    assert (torch.float32 in types.values()) == (kind == torch.float16)


def test_what_overflows_in_half_precision_is_streamed_in_the_types_that_do_not(tmp_path):
    dense = t5(tmp_path / "dense", torch.float16)
    model = transformers.T5ForConditionalGeneration.from_pretrained(dense)
    with torch.no_grad():
        for block in model.encoder.block:
            block.layer[1].DenseReluDense.wi.weight.mul_(20)
            block.layer[1].DenseReluDense.wo.weight.mul_(4000)
    model.half().save_pretrained(dense)
    data = tuple(texts(samples, seed, reversed_) for seed, samples in enumerate((16, 4, 4)))
    found = rf.stream(dense, data, "params=0.8", tmp_path / "small", memory=MEMORY)
    small = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "small")
    assert small.encoder.block[0].layer[1].DenseReluDense.wo(torch.ones(1, 48)).dtype == torch.float32
    assert math.isfinite(found.after.judged.value)
    assert small(**data[2][0]).logits.isfinite().all()


def test_branches_side_by_side_that_lie_in_two_spans(tmp_path):
    """Attention and MLP are added in one sum, and the MLP's weights are not there while attention is fitted."""
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(**SMALL, max_position_embeddings=64)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "dense")
    data = tuple(texts(samples, seed) for seed, samples in enumerate((32, 8, 8)))
    found = rf.stream(tmp_path / "dense", data, "params=0.8", tmp_path / "small", memory=MEMORY)
    small = hub.opened(tmp_path / "small")
    assert small.num_parameters() == found.plan.after.params <= 0.8 * found.plan.before.params
    assert rf.evaluate(small, data[2], objective="causal-lm")["perplexity"] == pytest.approx(
        found.after["perplexity"], rel=1e-5
    )
    plan = whole(tmp_path / "dense", data, {entry.site for entry in found.plan.entries}, 4)
    assert {e.site: e.rank for e in plan.entries} == {e.site: e.rank for e in found.plan.entries}
    network = rf.apply_(hub.opened(tmp_path / "dense"), plan)
    lost = rf.evaluate(network, data[2], objective="causal-lm", teacher=hub.opened(tmp_path / "dense"))["kl"]
    assert found.after["kl"] == pytest.approx(lost, rel=0.1)


@pytest.mark.parametrize(
    ("make", "labels", "told"),
    [
        (t5, reversed_, "objective: causal-lm (the model gives tokens at the places of its labels)"),
        (t5, lambda ids: {"decoder_input_ids": ids.flip(1)}, "objective: teacher (the data have no targets: outputs "),
        (classifier, by_first, "objective: classification (one class index for each sample)"),
        (classifier, lambda ids: {"attention_mask": torch.ones_like(ids)}, "objective: teacher (the data have no tar"),
    ],
    ids=["t5 with labels", "t5 without", "bert with labels", "bert without"],
)
def test_the_objective_is_the_one_that_is_told_in_memory(tmp_path, make, labels, told):
    dense, said = make(tmp_path / "dense"), []
    data = tuple(texts(samples, seed, labels) for seed, samples in enumerate((32, 8, 8)))
    tell = Tell(say=said.append)
    found = rf.stream(dense, data, "params=0.8", tmp_path / "small", memory=MEMORY, tell=tell)
    assert any(line.startswith(told) for line in said)
    plan = whole(dense, data, {entry.site for entry in found.plan.entries}, 4)
    assert found.plan.total.unit == plan.total.unit
    assert {e.site: e.rank for e in found.plan.entries} == {e.site: e.rank for e in plan.entries}
    objective = rf.pipeline.compress(
        hub.opened(dense), data, "params=0.99", settings=rf.pipeline.Settings("truncate", curve=False)
    ).before.score.objective
    assert found.after.objective == objective
    small = hub.opened(tmp_path / "small")
    judged = rf.evaluate(small, data[2], teacher=hub.opened(dense)).judged
    assert found.after.judged.value == pytest.approx(judged.value, rel=1e-4)


def test_masks_in_a_pair_with_labels_are_left_out_where_blocks_are_told_apart(tmp_path):
    dense = classifier(tmp_path / "dense")

    def pairs(samples: int, seed: int) -> list[Any]:
        ids = [batch["input_ids"] for batch in texts(samples, seed)]
        return [({"input_ids": part, "attention_mask": torch.ones_like(part)}, part[:, 0] % 3) for part in ids]

    data = (pairs(16, 0), pairs(8, 1), pairs(8, 2))
    found = rf.stream(dense, data, "params=0.8", tmp_path / "small", memory=MEMORY)
    small = hub.opened(tmp_path / "small")
    assert found.after.judged.value == rf.evaluate(small, data[2]).judged.value
