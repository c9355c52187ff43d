#!/usr/bin/env bash
# torchtune 0.6.1, torchao 0.10.0, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: an adapter written in PEFT's format (tune_to_peft_adapter_weights) is, put on the base in Hugging Face's order of rows, the
# merged checkpoint that is written beside it in that order (get_merged_lora_ckpt, tune_to_hf), for LoRA and DoRA alike.
# Seen: for LoRA it is. The rows of q_proj and k_proj lie in another order in the two formats (rotary embedding); the conversion
# puts the rows of lora_B in order and leaves DoRA's magnitudes as they were: each row of q and k gets another row's length. The
# weights are off by a third and more of their size here; v_proj and output_proj are right. No error, no warning. Take the merged
# checkpoint, or put the magnitudes in order by hand.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 torchtune==0.6.1 torchao==0.10.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import torch
from torchtune.models import convert_weights
from torchtune.models.llama2 import lora_llama2
from torchtune.modules.peft import get_adapter_params, get_merged_lora_ckpt

assert version("torchtune") == "0.6.1" and torch.__version__.startswith("2.13.0")
heads, groups, width, rank, alpha = 4, 2, 32, 4, 8
order = {"num_heads": heads, "num_kv_heads": groups, "dim": width}
names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}

for dora in (False, True):
    torch.manual_seed(0)
    model = lora_llama2(
        lora_attn_modules=list(names),
        vocab_size=64,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=groups,
        embed_dim=width,
        max_seq_len=32,
        intermediate_dim=48,
        lora_rank=rank,
        lora_alpha=alpha,
        use_dora=dora,
    )
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "initialize_dora_magnitude"):
                module.initialize_dora_magnitude()
        for key, value in get_adapter_params(model).items():
            if "magnitude" in key:
                value *= 0.5 + torch.rand_like(value)
            elif "lora_b" in key:
                value += torch.randn_like(value) * 0.1
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    adapter = {key: value.detach().clone() for key, value in get_adapter_params(model).items()}
    plain = {key: value.clone() for key, value in state.items() if "lora" not in key and "magnitude" not in key}
    base = convert_weights.tune_to_hf(plain, **order)
    merged = convert_weights.tune_to_hf(get_merged_lora_ckpt(dict(state), rank, alpha), **order)
    written = convert_weights.tune_to_peft_adapter_weights(adapter, **order)
    for name in names.values():
        layer = f"model.layers.0.self_attn.{name}"
        a, b = (written[f"base_model.model.{layer}.lora_{which}.weight"] for which in "AB")
        weight = base[f"{layer}.weight"] + alpha / rank * b @ a
        wanted = merged[f"{layer}.weight"]
        if dora:
            lengths = written[f"base_model.model.{layer}.lora_magnitude_vector"]
            weight = weight * (lengths / weight.norm(dim=1))[:, None]
            assert torch.allclose(lengths.sort()[0], wanted.norm(dim=1).sort()[0], atol=1e-5)  # the same ones, in some order
        off = float((weight - wanted).norm() / wanted.norm())
        print(f"{'DoRA' if dora else 'LoRA'}, {name}: base and adapter are {off:.1e} off the merged weight")
        assert (off > 0.1) == (dora and name in ("q_proj", "k_proj")), "the magnitudes are put in order now"
        assert off > 0.1 or off < 1e-5
PY
