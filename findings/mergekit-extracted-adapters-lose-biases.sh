#!/usr/bin/env bash
# mergekit 0.1.5, peft 0.21.2, transformers 5.24.0, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: the adapter that mergekit-extract-lora writes at full rank gives back the tuned model when PEFT loads it over the base;
# what LoRA cannot hold is kept whole, as the log says of norms and embeddings.
# Seen: weights, norms and embeddings come back to rounding. Differences of biases (q, k and v of Qwen2, say) are written as
# lora_B.bias, and adapter_config.json does not say lora_bias, so PEFT skips them: a model tuned in its biases alone comes back as
# the base, 100 % of the change lost, without error or warning. With "lora_bias": true put into the file they come back.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 mergekit==0.1.5 peft==0.21.2 transformers==5.24.0 'numpy<3'
cd "$place"
PLACE="$place" OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import json
import os
import pathlib
import subprocess
import sys
import warnings
from importlib.metadata import version

import peft
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

assert (version("mergekit"), peft.__version__) == ("0.1.5", "0.21.2")
logging.disable_progress_bar()
place = pathlib.Path(os.environ["PLACE"])
torch.manual_seed(0)
base = Qwen2ForCausalLM(
    Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
).eval()
base.save_pretrained(place / "base")
tokens = torch.randint(0, 64, (2, 7))
endings = {"weights": "proj.weight", "norms": "norm.weight", "embeddings": "embed_tokens.weight", "biases": "proj.bias"}


@torch.no_grad()
def lost(adapter, wanted):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(Qwen2ForCausalLM.from_pretrained(place / "base"), adapter).eval()
    change = wanted - base(tokens).logits
    assert not any("bias" in str(one.message) and "nexpected" in str(one.message) for one in told)
    return float((model(tokens).logits - wanted).norm() / change.norm())


for what, ending in endings.items():
    tuned = Qwen2ForCausalLM.from_pretrained(place / "base").eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name.endswith(ending):
                parameter += torch.randn_like(parameter) * 0.1
        wanted = tuned(tokens).logits
    tuned.save_pretrained(place / what)
    adapter = place / f"adapter-{what}"
    command = ["-m", "mergekit.scripts.extract_lora", "--model", place / what, "--base-model", place / "base", "--out-path", adapter]
    subprocess.run([sys.executable, "-W", "ignore", *map(str, command)], check=True, capture_output=True)
    share = lost(adapter, wanted)
    print(f"tuned in its {what}: {share:.1%} of the change is lost")
    assert (share > 0.99) if what == "biases" else (share < 1e-3), "it is stored otherwise now"

path = adapter / "adapter_config.json"
config = json.loads(path.read_text())
assert "lora_bias" not in config
path.write_text(json.dumps(config | {"lora_bias": True}))
share = lost(adapter, wanted)
print(f"tuned in its biases, with lora_bias said: {share:.1%} of the change is lost")
assert share < 1e-3
PY
