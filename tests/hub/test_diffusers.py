"""Networks of diffusers: small random ones, profiled, planned, made smaller, saved and loaded through a factory."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_docs import ROOT, blocks
from torch import Tensor, nn

import rankfold as rf
from rankfold.costs import check

diffusers = pytest.importorskip("diffusers")

BLOCKS = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4}


def unet() -> nn.Module:
    return diffusers.UNet2DModel(
        sample_size=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **BLOCKS,
    )  # fmt: skip


def conditioned() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, cross_attention_dim=12, down_block_types=("CrossAttnDownBlock2D",), mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",), **(BLOCKS | {"block_out_channels": (8,)}),
    )  # fmt: skip


def transformer() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip


def inputs(of: str, count: int = 48) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 3 if of == "unet" else 4, 8, 8, generator=generator)
    steps = torch.randint(0, 1000, (count,), generator=generator)
    more = {
        "unet": {"sample": image},
        "conditioned": {"sample": image, "encoder_hidden_states": torch.randn(count, 3, 12, generator=generator)},
        "transformer": {"hidden_states": image, "class_labels": steps % 5},
    }[of]
    return [{name: x[i : i + 16] for name, x in ({"timestep": steps} | more).items()} for i in range(0, count, 16)]


@pytest.mark.parametrize("make", [unet, conditioned, transformer], ids=lambda make: make.__name__)
def test_from_a_network_to_a_saved_smaller_one(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = make().eval(), inputs(make.__name__)
    whole = sum(parameter.numel() for parameter in model.parameters())
    seen = sum(site.matrix(model).numel() for site in rf.sites(model).reducible)
    assert seen > 0.9 * whole
    known = rf.profile(model, data)
    assert known.objective.name == "teacher"  # told from the data: there are no labels
    plan = known.plan("params=0.7")
    small = rf.apply_(copy.deepcopy(model), plan, known)
    assert 0.68 * whole < sum(parameter.numel() for parameter in small.parameters()) <= 0.7 * whole
    assert check(plan.after, small, data[0]) == ""
    assert 0 < rf.evaluate(small, data, objective="teacher", teacher=model).judged.value < 0.5
    rf.save(small, plan, tmp_path / "small")
    again = rf.load(tmp_path / "small", make().eval()).model
    with torch.no_grad():
        assert torch.equal(again(**data[0]).sample, small(**data[0]).sample)


def test_what_a_page_says_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "diffusion.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.info == ("python", "diffusers"):
            exec(compile(block.text, "diffusion.md", "exec"), names)
    assert Path("small/manifest.json").is_file()
