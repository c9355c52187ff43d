#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, Python 3.11, on a CPU
#
# Guess: a network made by `AutoModel….from_config` of a folder's own configuration has the dtypes that `from_pretrained` of the same
# folder gives, so that its weights may be filled in from the files one by one.
# Seen: the list of modules that a class keeps in float32 (in T5 the second matrix of each feed-forward layer) is honoured by
# `from_pretrained` alone. `from_config` makes them float16 like all others; `load_state_dict` copies the float32 weights into them
# without a word; and where activations are large, which is what the list exists for, the outputs are no numbers.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - "$place/folder" <<'PY'
import sys

import torch
import transformers

assert transformers.__version__ == "5.24.0"
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
kind = transformers.T5ForConditionalGeneration
config = transformers.T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
model = kind(config)
with torch.no_grad():  # as trained ones have: what the second matrix gives is beyond the range of float16
    model.encoder.block[0].layer[1].DenseReluDense.wi.weight.mul_(2_000)
    model.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(2_000)
model.half().save_pretrained(sys.argv[1])

loaded = kind.from_pretrained(sys.argv[1]).eval()
made = kind._from_config(transformers.AutoConfig.from_pretrained(sys.argv[1])).eval()
auto = transformers.AutoModelForSeq2SeqLM.from_config(transformers.AutoConfig.from_pretrained(sys.argv[1]))
told = made.load_state_dict(loaded.state_dict())
name = "encoder.block.0.layer.1.DenseReluDense.{}.weight"
for which, network in (("from_pretrained", loaded), ("from_config", made), ("AutoModel's from_config", auto)):
    dtypes = {part: str(network.get_parameter(name.format(part)).dtype) for part in ("wi", "wo")}
    print(f"{which}: the configuration says {network.config.dtype}, first matrix {dtypes['wi']}, second {dtypes['wo']}")
    assert network.config.dtype == torch.float16 and dtypes["wi"] == "torch.float16"
    assert dtypes["wo"] == ("torch.float32" if network is loaded else "torch.float16")
print("load_state_dict:", told)
ids = torch.arange(3, 15)[None]
with torch.no_grad():
    finite = {
        which: bool(network.encoder.block[0].layer[1].DenseReluDense(network.shared(ids)).isfinite().all())
        for which, network in (("from_pretrained", loaded), ("from_config", made))
    }
print("what the layer gives is finite:", finite)
assert finite == {"from_pretrained": True, "from_config": False}
PY
