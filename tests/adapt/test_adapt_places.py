"""Layers whose adapter PEFT reads wrong are left out of an adaptation before it is trained, and that is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import rankfold as rf
from rankfold.adapt.places import places, unread
from rankfold.pipeline.adaptation import AdaptSettings, adapt
from rankfold.run.progress import Tell
from rankfold.sites import Names

METHODS = ("lora", "rslora", "dora", "adalora", "deep-lora", "geolora", "debora")
FUSED = "nn.TransformerEncoderLayer, whose fused kernel reads its weight in eval mode"


class Shared(nn.Module):
    """Two layers of which one hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


class Twice(nn.Module):
    """A block that hangs in two places."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.body = nn.Sequential(block, block)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


def encoder(**how) -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True} | how), nn.Flatten(), nn.Linear(64, 3)
    )


def convolution(**how) -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3, **how), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(6, 3))


def seeded(make) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def data(*shape: int):
    """Parts of the same samples, as what is learnt does not matter here, only that something is."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(48, *shape, generator=draw)
    y = (x.flatten(1)[:, :8] @ torch.randn(8, 3, generator=draw)).argmax(1)
    return (TensorDataset(x, y),) * 3


def settings(method: str, **more) -> AdaptSettings:
    return AdaptSettings(method, **{"params": 300, "epochs": 6, "batch_size": 8, "learning_rate": 2e-2} | more)


CASES = {
    "encoder": (encoder, (8, 8), {"0.linear1.weight", "0.linear2.weight"}),
    "shared": (Shared, (8,), {"a.weight"}),
    "dilated": (lambda: convolution(dilation=2), (1, 8, 8), {"0.weight"}),
    "circular": (lambda: convolution(padding=1, padding_mode="circular"), (1, 8, 8), {"0.weight"}),
    "twice": (Twice, (8,), set()),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", CASES)
def test_what_is_reported_is_what_peft_gives(case, method, tmp_path):
    peft = pytest.importorskip("peft")
    make, shape, left = CASES[case]
    parts, said = data(*shape), []
    model = seeded(make)
    found = adapt(model, parts, settings(method), tmp_path / "out", tell=Tell(say=said.append))
    there = {item["name"]: item["why"] for item in found.to_dict()["left_out"]}
    assert left <= set(there)
    assert not {f"{name}.weight" for name in found.extraction.adapter.pairs} & set(there)
    (told,) = [sentence for sentence in said if sentence.startswith("left out: ")] if there else [""]
    assert all(name in told and there[name] in told for name in left)
    x = parts[2].tensors[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT misses the second name of a layer in a block that hangs in two places
        read = peft.PeftModel.from_pretrained(seeded(make), tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(read(x), model(x), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(x), seeded(make)(x), atol=1e-3)  # something was learnt


@pytest.mark.parametrize("method", ["lora", "deep-lora"])
@pytest.mark.parametrize("where", ["*linear?", "0.linear1", Names(only=["2", "0.linear1"]), Names(only=["0"])])
def test_a_layer_that_is_asked_for_by_name_is_refused(where, method, tmp_path):
    pytest.importorskip("peft")
    asked = settings(method, where=where)
    with pytest.raises(ValueError, match=rf"chooses no layer that can be adapted: .*0\.linear1.*{FUSED}") as told:
        adapt(seeded(encoder), data(8, 8), asked, tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / "training").exists()


def test_a_shared_layer_is_known_by_all_its_names(tmp_path):
    for name in ("a", "b"):
        with pytest.raises(
            ValueError, match=r"chooses no layer that can be adapted: a\.weight \(the same layer as b: PEFT"
        ):
            adapt(seeded(Shared), data(8), settings("deep-lora", where=name), tmp_path / "out")


def test_where_nothing_is_left_the_reasons_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"no linear layer that can be adapted.*0\.linear1\.weight.*fused kernel"):
        adapt(
            seeded(encoder), data(8, 8), settings("deep-lora", where=lambda name, _: "linear" in name), tmp_path / "out"
        )
    with pytest.raises(ValueError, match=r"no linear layer that can be adapted.*0\.weight \(a Conv2d: only linear"):
        adapt(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()), data(1, 8, 8), settings("deep-lora"), tmp_path / "out")


@pytest.mark.parametrize(
    "how",
    [
        {"batch_first": False}, {"bias": False}, {"activation": torch.tanh}, {"activation": "relu"},
        {"activation": "gelu"}, {"activation": nn.GELU()}, {"norm_first": True}, {},
    ],
)  # fmt: skip
def test_the_fused_kernel_is_the_reason_just_where_torch_takes_it(how):
    """Against torch itself: a layer's weight is read without a call, or the layer is called."""
    block = nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True} | how).eval()
    called = []
    real = block.linear1.forward
    block.linear1.forward = lambda x: (called.append(1), real(x))[1]  # no hook, which would turn the kernel off
    with torch.no_grad():
        block(torch.randn(4, 3, 8))
    for name in ("linear1", "linear2"):
        assert (unread(block, name, getattr(block, name)) is None) == bool(called)
    assert unread(block, "norm1", block.norm1) is None


def test_an_odd_number_of_heads_and_a_class_of_ones_own_are_read():
    class Own(nn.TransformerEncoderLayer):
        def forward(self, src, **rest):
            return self.linear2(self.linear1(src))

    for block in (nn.TransformerEncoderLayer(9, 3, 16, batch_first=True), Own(8, 2, 16, batch_first=True)):
        assert {site.name for site in places(block, written=True).sites} == {"linear1", "linear2"}


def test_in_memory_they_may_be_adapted_and_merged_but_not_written(tmp_path):
    model, x = seeded(encoder), torch.randn(5, 8, 8)
    rf.deep_lora_(model, 2, where="0", epsilon=0.5)
    with torch.no_grad():
        adapted = model(x)
    with pytest.raises(ValueError, match=rf"0\.linear1: a layer of {FUSED}.*merge the updates with merge_"):
        rf.adapt.save_adapter(model, tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(rf.adapt.merge_(model)(x), adapted, rtol=1e-4, atol=1e-5)


def test_extract_leaves_them_out_too():
    base, tuned = seeded(encoder), seeded(encoder)
    with torch.no_grad():
        for layer in (tuned[0].linear1, tuned[2]):
            layer.weight.add_(torch.randn(layer.weight.shape), alpha=0.1)
    found = rf.extract(base, tuned, "rank=8")
    assert list(found.adapter.ranks) == ["2"]
    (left,) = [item for item in found.left_out if item.change]
    assert left.name == "0.linear1.weight"
    assert FUSED in left.why


def test_matrices_inside_other_modules_are_told_as_such():
    model = nn.Sequential(nn.LSTM(4, 5), nn.MultiheadAttention(4, 2), nn.Linear(5, 2))
    left = dict(places(model).left_out)
    assert left["0.ih_l0.weight"] == "a matrix inside LSTM, which computes with it in code of its own"
    assert left["1.q_proj.weight"].startswith("a projection inside nn.MultiheadAttention")
    assert left["1.out_proj.weight"].startswith("a projection inside nn.MultiheadAttention")
