"""What others do with a compressed model: adapters, training, compiling, exporting."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import network

import rankfold as rf
from rankfold.export import to_onnx, to_torch_export

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import rankfold.hub  # noqa: E402

NAMES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "bert": ["query", "dense"]}
pytestmark = pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")


def inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def answer(model, batch):
    with torch.no_grad():
        return model(**inputs(batch)).logits


@pytest.fixture(params=NAMES)
def compressed(request):
    """A model with every matrix factored, a batch, and the names that people give to LoRA."""
    model, batch = network(request.param)
    ranks = {site.name: max(1, min(site.shape) // 3) for site in rf.sites(model).reducible}
    plan = rf.plan(model, rf.Ranks(ranks), "truncate", example=inputs(batch))
    return rf.apply_(model, plan), batch, NAMES[request.param]


def trained(model, batch, rate: float = 0.5):
    """A few steps of the adapters alone."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(3):
        model(**inputs(batch)).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def adapted(model, names, **more):
    config = rankfold.hub.adapters(peft.LoraConfig(r=2, target_modules=names, **more))
    return peft.get_peft_model(copy.deepcopy(model), config)


def test_lora_by_the_names_people_use_is_trained_merged_saved_and_loaded(compressed, tmp_path):
    model, batch, names = compressed
    before = answer(model, batch)
    small = adapted(model, names)
    assert torch.equal(answer(small, batch), before)
    chosen = [name for name, module in small.named_modules() if type(module).__name__ == "FactoredLora"]
    assert len(chosen) >= 4
    assert all(p.requires_grad is ("lora_" in name) for name, p in small.named_parameters())
    trained(small, batch)
    after = answer(small, batch)
    assert float((after - before).abs().max()) > 1e-3
    small.save_pretrained(tmp_path)
    config = rankfold.hub.adapters(peft.LoraConfig.from_pretrained(tmp_path))
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path, config=config).eval()
    torch.testing.assert_close(answer(again, batch), after)
    ranks = {n: m.rank for n, m in model.named_modules() if isinstance(m, rf.LowRankLinear)}
    small.merge_adapter()
    torch.testing.assert_close(answer(small, batch), after, rtol=1e-4, atol=1e-5)
    small.unmerge_adapter()
    torch.testing.assert_close(answer(small, batch), after, rtol=1e-4, atol=1e-5)
    merged = small.merge_and_unload()
    torch.testing.assert_close(answer(merged, batch), after, rtol=1e-4, atol=1e-5)
    wider = {n: m.rank for n, m in merged.named_modules() if isinstance(m, rf.LowRankLinear)}
    assert {wider[n] - ranks[n] for n in ranks} <= {0, 2}
    assert sum(wider[n] - ranks[n] for n in ranks) == 2 * len(chosen)
    merged.save_pretrained(tmp_path / "merged")
    loaded = type(merged).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answer(loaded.eval(), batch), answer(merged, batch))


def test_without_the_call_peft_refuses_and_lora_on_the_factors_is_ordinary(compressed):
    model, batch, names = compressed
    with pytest.raises(ValueError, match="is not supported"):
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=names))
    parts = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=1, target_modules=r".*\.(up|down)"))
    before = answer(parts, batch)
    trained(parts, batch, 0.02)
    after = answer(parts, batch)
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(answer(parts.merge_and_unload(), batch), after, rtol=1e-4, atol=1e-5)


def test_variants_and_adapters_that_are_not_finite_are_not_merged(compressed):
    model, _, names = compressed
    small = adapted(model, names, lora_bias=True) if "query" not in names else adapted(model, names, use_dora=True)
    with pytest.raises(rankfold.hub.HubError, match="cannot be merged into a LowRank"):
        small.merge_and_unload()
    small = adapted(model, names)
    next(p for n, p in small.named_parameters() if "lora_A" in n).data.fill_(torch.nan)
    with pytest.raises(rankfold.hub.HubError, match="holds values that are NaN or infinite"):
        small.merge_and_unload(safe_merge=True)


def test_the_trainer_trains_it_and_its_checkpoints_load(compressed, tmp_path):
    model, batch, _ = compressed
    model = type(model).from_pretrained(saved(model, tmp_path / "small"))  # as whoever has the folder
    rows = [{key: value[index] for key, value in batch.items()} for index in range(len(batch["input_ids"]))]
    rows = [row | {"labels": row.get("labels", row["input_ids"])} for row in rows]
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=2, save_steps=3, report_to=[],
        disable_tqdm=True, use_cpu=True, learning_rate=1e-2,
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    transformers.Trainer(model=model, args=settings, train_dataset=rows).train()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.endswith("down.weight") for name in moved)
    assert any(name.endswith("up.weight") for name in moved)
    again = type(model).from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert torch.equal(answer(again.eval(), batch), answer(model.eval(), batch))


def saved(model, place):
    model.save_pretrained(place)
    return place


def test_it_is_compiled_and_exported_with_any_number_of_tokens(compressed, tmp_path):
    model, batch, _ = compressed
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(answer(compiled, batch), answer(model, batch))
    example = {key: inputs(batch)[key][:1] for key in ("input_ids", "attention_mask")}
    assert to_torch_export(model, example, tmp_path / "m.pt2") < 1e-5
    onnxruntime = pytest.importorskip("onnxruntime")
    assert to_onnx(model, example, tmp_path / "m.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for rows, length in ((1, 3), (4, 7)):
        given = {key: value[:rows, :length] for key, value in inputs(batch).items()}
        (found, *_) = session.run(["logits"], {key: value.numpy() for key, value in given.items()})
        torch.testing.assert_close(torch.from_numpy(found), answer(model, given), rtol=1e-3, atol=1e-4)
