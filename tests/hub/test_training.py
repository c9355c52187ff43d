"""Models of transformers trained at low rank: what is saved in the middle of it and after it, and who may load that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from networks import network

import rankfold as rf

transformers = pytest.importorskip("transformers")
UP = "model.layers.0.mlp.up_proj"


def inputs(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def answer(model, batch):
    with torch.no_grad():
        return model.eval()(**inputs(batch)).logits


def told(place):
    return json.loads((place / "config.json").read_text()).get("quantization_config")


def prepared(model, how):
    if how == "dlrt":
        return rf.dlrt_(model, 4)
    if how == "products":
        return rf.overparametrize_(model)
    return rf.Pufferfish(rank=0.25).prepare_(model)


def without_plug_in(kind, place):
    script = (
        f"import sys, transformers\ntransformers.{kind}.from_pretrained(sys.argv[1])\n"
        "assert not any(name.startswith('rankfold') for name in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", script, place], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_factors_that_are_kept_are_in_the_folder(name, tmp_path):
    from rankfold.hub import files_of

    model, batch = network(name)
    rf.fold_(rf.dlrt_(model, 4), keep=True)
    wanted = answer(model, batch)
    model.save_pretrained(tmp_path)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path), batch), wanted)
    assert {decision["form"] for decision in told(tmp_path)["sites"].values()} == {"factored"}
    assert files_of(model)["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    refused = without_plug_in(type(model).__name__, tmp_path)
    assert refused.returncode != 0
    assert "mismatch" in refused.stderr


def test_cores_of_convolutions_that_are_kept_are_in_the_folder(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic", num_labels=3
    )
    torch.manual_seed(0)
    model, images = transformers.ResNetForImageClassification(config).eval(), torch.randn(2, 3, 32, 32)
    rf.fold_(rf.dlrt_(model, 4, convolutions="tucker"), keep=True)
    with torch.no_grad():
        wanted = model(images).logits
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(again(images).logits, wanted)
    assert {decision["form"] for decision in told(tmp_path)["sites"].values()} >= {"tucker", "factored"}


def test_a_factor_that_was_trained_at_low_rank_is_in_the_folder(tmp_path):
    from rankfold.hub import HubError, to_dense

    model, batch = network("llama")
    plan = rf.plan(model, rf.Ranks({UP: 20}), "truncate", example=inputs(batch))
    small = rf.dlrt_(rf.apply_(model, plan), 4, where=f"{UP}.down")
    small.save_pretrained(tmp_path / "before")
    with pytest.raises(HubError, match=rf"{UP}\.down was saved in the middle of its training"):
        type(model).from_pretrained(tmp_path / "before")
    rf.fold_(small, keep=True)
    wanted = answer(small, batch)
    small.save_pretrained(tmp_path / "after")
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "after"), batch), wanted)
    assert torch.allclose(answer(to_dense(small), batch), wanted, atol=1e-5)


def test_a_factor_that_was_replaced_by_hand_is_in_the_folder(tmp_path):
    model, batch = network("llama")
    small = rf.apply_(model, rf.plan(model, rf.Ranks({UP: 20}), "truncate", example=inputs(batch)))
    small.get_submodule(UP).down = rf.LowRankLinear(32, 3, 20, bias=False)
    small.save_pretrained(tmp_path)
    assert torch.equal(answer(type(model).from_pretrained(tmp_path), batch), answer(small, batch))
    assert told(tmp_path)["sites"][f"{UP}.down"] == {"form": "factored", "rank": 3, "bias": False}


@pytest.mark.parametrize("how", ["dlrt", "products", "pufferfish"])
def test_in_training_a_model_is_a_checkpoint_and_no_folder(how, tmp_path):
    """Whoever trains it goes on with it; loaded as an ordinary model its layers would be random."""
    from safetensors.torch import load_file

    from rankfold.hub import HubError, files_of, to_dense

    model, batch = network("llama")
    dense = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    wanted = answer(prepared(model, how), batch)
    model.save_pretrained(tmp_path / "middle")
    with pytest.raises(HubError, match=r"saved in the middle of its training .* fold that model"):
        type(model).from_pretrained(tmp_path / "middle")
    refused = without_plug_in(type(model).__name__, tmp_path / "middle")
    assert refused.returncode != 0
    assert "mismatch" in refused.stderr
    with pytest.raises(HubError, match="still in training"):
        files_of(model)

    fresh = prepared(network("llama")[0], how)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    assert torch.allclose(answer(to_dense(model), batch), wanted, atol=1e-4)
    missing, foreign = fresh.load_state_dict(load_file(tmp_path / "middle" / "model.safetensors"), strict=False)
    assert (missing, foreign) == ([], [told(tmp_path / "middle")["poison"]])
    assert torch.equal(answer(fresh, batch), wanted)

    wanted = answer(rf.fold_(model), batch)
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == dense
    assert model.hf_quantizer is None
    model.save_pretrained(tmp_path / "after")
    assert told(tmp_path / "after") is None
    assert torch.equal(answer(type(model).from_pretrained(tmp_path / "after"), batch), wanted)
    assert files_of(model)


def test_a_trainer_goes_on_from_its_checkpoint(tmp_path):
    """Two epochs in one go, and one and one more, end at the same weights."""

    def trained(place, **resumed):
        model, batch = network("llama")
        rf.dlrt_(model, 4)
        torch.manual_seed(1)
        rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 30, (8, 6))]
        settings = transformers.TrainingArguments(
            str(place), num_train_epochs=2, per_device_train_batch_size=4, save_strategy="epoch", report_to=[],
            use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant", optim="sgd", learning_rate=0.1, seed=3,
        )  # fmt: skip
        trainer = transformers.Trainer(model, settings, train_dataset=rows)
        trainer.train(**resumed)
        return answer(model, batch)

    whole = trained(tmp_path)
    assert torch.equal(trained(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2")), whole)
