"""Adapters on the disk: read as PEFT reads them, replaced whole, refused with what they are."""

from __future__ import annotations

import copy
import errno
import json

import pytest
import torch
from torch import Tensor, nn

import rankfold as rf
from rankfold.adapt import Adapter, combine, extract, read_adapter, save_adapter, write_adapter
from rankfold.linalg import NonFiniteError
from rankfold.run.disk import files


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attn(x, x, x)[0])


@pytest.mark.parametrize("how", [{"alpha_pattern": {"attn": 32}}, {"alpha_pattern": {"attn": 32}, "use_rslora": True}])
def test_both_parts_of_attention_have_the_alpha_of_its_name(how, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base, x = Attending().eval(), torch.randn(2, 5, 16)
    config = peft.LoraConfig(target_modules=["attn", "fc"], r=4, lora_alpha=4, init_lora_weights=False, **how)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    model.save_pretrained(tmp_path / "given")
    attention = model.base_model.model.attn
    wanted = {"attn": attention, "attn.base_layer.out_proj": attention.base_layer.out_proj}
    pairs = read_adapter(tmp_path / "given").pairs
    for name, layer in wanted.items():
        a, b = pairs[name]
        torch.testing.assert_close(b @ a, layer.get_delta_weight("default").detach())
    again = peft.PeftModel.from_pretrained(
        copy.deepcopy(base), combine([tmp_path / "given"], "rank=4").save(tmp_path / "again")
    )
    torch.testing.assert_close(again.eval()(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_grouped_convolution_is_called_so(tmp_path):
    peft = pytest.importorskip("peft")
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
    config = peft.LoraConfig(target_modules=["0"], r=4, init_lora_weights=False)
    with pytest.warns(UserWarning, match="groups > 1"):
        peft.get_peft_model(net, config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"0 is a convolution in 2 groups.*train an adapter without this layer"):
        read_adapter(tmp_path)


def test_how_weights_of_an_earlier_peft_are_converted_is_said(tmp_path):
    write_adapter(Adapter({"0": (torch.ones(1, 4), torch.ones(3, 1))}), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin: only safetensors .* convert the file once with"):
        read_adapter(tmp_path)


def updated() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 16))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight.add_(torch.randn(16, 16))
    return base, tuned


@pytest.mark.parametrize("written", [1, 2])
def test_a_full_disk_leaves_the_adapter_that_was_there(written, tmp_path, monkeypatch):
    """After so many files that were still written."""
    extract(*updated(), "rank=2").save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write, calls = files._written, []

    def full(path, data):
        calls.append(path)
        if len(calls) > written:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(files, "_written", full)
    with pytest.raises(OSError, match="No space left"):
        extract(*updated(), "rank=8").save(tmp_path)
    assert len(calls) == written + 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_files_of_two_adapters_are_not_read_as_one(tmp_path):
    extract(*updated(), "rank=2").save(tmp_path)
    config = tmp_path / "adapter_config.json"
    earlier = config.read_text()
    extract(*updated(), "rank=8").save(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 16.0}))
    assert read_adapter(tmp_path).pairs["0"][1].norm() > 0  # a strength that was set by hand is no fault
    config.write_text(earlier)
    said = r"0 has rank 8 in adapter_model\.safetensors and 2 in adapter_config\.json.*train or save the adapter again"
    with pytest.raises(ValueError, match=said):
        read_adapter(tmp_path)


def test_what_an_earlier_extraction_says_goes_with_it(tmp_path):
    found = extract(*updated(), "rank=2")
    found.save(tmp_path)
    write_adapter(found.adapter, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "extraction.json").write_text("somebody's")
    write_adapter(found.adapter, tmp_path / "other")
    assert (tmp_path / "other" / "extraction.json").read_text() == "somebody's"


def test_a_layer_whose_update_is_not_finite_is_named(tmp_path):
    torch.manual_seed(0)
    model = rf.deep_lora_(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), rank=2)
    with torch.no_grad():
        model[1].factors[0].fill_(float("nan"))
    said = "1: 16 of 16 values of a matrix of its update are NaN or infinite: train it anew"
    with pytest.raises(NonFiniteError, match=f"^{said}"):
        save_adapter(model, tmp_path / "saved")
    pair = torch.full((2, 8), float("nan")), torch.ones(8, 2)
    adapter = Adapter({"first": (torch.ones(2, 8), torch.ones(8, 2)), "block.1": pair})
    with pytest.raises(NonFiniteError, match=f"^block.{said}"):
        combine([adapter], "rank=1")
    with pytest.raises(NonFiniteError, match=f"^block.{said}"):
        write_adapter(adapter, tmp_path / "written")
    assert not list(tmp_path.iterdir())
