"""A folder that was saved into more than once: which of its files hold the weights."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

import rankfold as rf
from rankfold.run.disk.tensors import Checkpoint
from rankfold.store import manifest

transformers = pytest.importorskip("transformers")

import rankfold.hub as hub  # noqa: E402

NAME = "model.layers.0.mlp.up_proj"


@pytest.fixture
def pair():
    """A network, and the same with an update of rank 1 in one layer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    tuned = copy.deepcopy(model)
    tuned.get_submodule(NAME).weight.data += torch.randn(16, 1) @ torch.randn(1, 16)
    return model, tuned


def weight(model):
    return model.get_submodule(NAME).weight


def test_a_single_file_counts_before_the_parts_of_an_earlier_save(pair, tmp_path):
    model, tuned = pair
    model.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "both", max_shard_size="8KB")
    parts = {path.name for path in (tmp_path / "both").glob("model*")}
    tuned.save_pretrained(tmp_path / "tuned")
    shutil.copy(tmp_path / "tuned" / "model.safetensors", tmp_path / "both")
    assert torch.equal(weight(type(model).from_pretrained(tmp_path / "both")), weight(tuned))
    assert torch.equal(Checkpoint(tmp_path / "both").read(f"{NAME}.weight"), weight(tuned))
    assert torch.equal(weight(hub.opened(tmp_path / "both")), weight(tuned))
    assert rf.extract(tmp_path / "base", tmp_path / "both", "rank=1").adapter.ranks[NAME] == 1
    assert set(hub.left_alone(tmp_path / "both")) == parts


def test_an_index_whose_parts_are_gone_is_no_damage_beside_a_single_file(pair, tmp_path):
    model, tuned = pair
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    tuned.save_pretrained(tmp_path)  # transformers takes the parts away and leaves the index
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert not list(tmp_path.glob("model-*"))
    assert torch.equal(weight(hub.opened(tmp_path)), weight(tuned))
    assert hub.left_alone(tmp_path) == ["model.safetensors.index.json"]


def test_parts_that_take_the_place_of_a_single_file_are_what_is_read(pair, tmp_path):
    model, tuned = pair
    model.save_pretrained(tmp_path / "small")
    tuned.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    written = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    manifest.write(tmp_path / "small", written, None, manifest.PRETRAINED)
    assert torch.equal(weight(hub.opened(tmp_path / "small")), weight(tuned))
