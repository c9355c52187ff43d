#!/usr/bin/env bash
# diffusers 0.42.1, torch 2.13.0, Python 3.11
#
# Guess: a UNet2DModel is made of convolutions, normalisations and attention, none of which looks at how many samples there
# are, so that torch.export takes it with a free batch.
# Seen: refused: "batch <= 63". Upsample2D calls .contiguous() from a batch of 64 on, and so the traced graph holds below
# alone; with Dim("batch", max=63) it is exported, and the program then refuses 64 samples, which the network itself takes.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet diffusers==0.42.1 torch==2.13.0 numpy
"$place/venv/bin/python" -W ignore - <<'PY'
import diffusers
import torch
from diffusers import UNet2DModel

assert diffusers.__version__ == "0.42.1", diffusers.__version__
torch.manual_seed(0)
model = UNet2DModel(sample_size=8, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
                    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, attention_head_dim=4).eval()


def given(size):
    return {"sample": torch.randn(size, 3, 8, 8), "timestep": torch.arange(size)}


def exported(most):
    batch = torch.export.Dim("batch", min=1, max=most)
    return torch.export.export(model, (), given(2), dynamic_shapes={name: {0: batch} for name in given(2)}, strict=False)


try:
    exported(1024)
except torch._dynamo.exc.UserError as error:
    line = next(line for line in str(error).splitlines() if "<= 63" in line)
    print("free batch:", line.strip())
else:
    raise AssertionError("exported for any batch")
program = exported(63).module()
with torch.no_grad():
    assert torch.allclose(program(**given(63)).sample.mean(), torch.tensor(0.0), atol=10)
    assert model(**given(64)).sample.shape[0] == 64
    try:
        program(**given(64))
    except Exception as error:
        print("64 samples:", type(error).__name__, str(error).splitlines()[0])
    else:
        raise AssertionError("took 64 samples")
PY
