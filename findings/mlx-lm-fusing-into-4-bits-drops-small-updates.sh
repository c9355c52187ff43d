#!/usr/bin/env bash
# mlx-lm 0.32.2, mlx 0.32.4, Python 3.11, on a CPU
#
# Guess: fuse() of an adapter over a 4-bit layer, which mlx_lm.fuse calls for each, gives the adapter's outputs up to an error well below
# what the adapter does: the base lies on its grid already, and so rounding meets the update alone. DoRA takes the bits that LoRA takes.
# Seen: the sum is quantised to the bits of the base again, and what is smaller than half a step is gone: at 4 bits an update that moves the
# outputs by 3 % keeps about a tenth of itself and one of 1 % nothing, 99 % of the codes are those of the base, and the fused layer is
# farther from the trained one than the base is. From 10 % on most of it survives, under an error of about 7 % of the outputs. At 8 bits 1 %
# survives and .3 % is halved. Nothing is said. With dequantize=True (--dequantize) all is kept, as in the unfused layer.
# DoRA over 3, 5 or 6 bits starts and raises at the first pass, for the number of inputs is computed with 32 // bits.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet mlx-lm==0.32.2 mlx==0.32.4 mlx-cpu==0.32.4 'numpy<3' 'transformers<6'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

assert [version(name) for name in ("mlx-lm", "mlx")] == ["0.32.2", "0.32.4"]
mx.set_default_device(mx.cpu)
mx.random.seed(0)
inputs = mx.random.normal((64, 512))


def norm(array):
    return float(mx.linalg.norm(array.reshape(-1)))


def quantised(bits):
    return nn.QuantizedLinear.from_linear(nn.Linear(512, 256, bias=False), 64, bits)


found = {}
for bits in (4, 8):
    for size in (0.003, 0.01, 0.03, 0.1, 0.3):
        base = quantised(bits)
        adapted = LoRALinear.from_base(base, r=8)
        adapted.lora_b = mx.random.normal(adapted.lora_b.shape)
        adapted.scale *= size * norm(base(inputs)) / norm(adapted(inputs) - base(inputs))
        update = adapted(inputs) - base(inputs)
        fused, exact = adapted.fuse(), adapted.fuse(dequantize=True)
        seen = fused(inputs) - base(inputs)
        kept, off = float((seen * update).sum() / (update * update).sum()), norm(seen - update) / norm(update)
        same = float((fused.weight == base.weight).mean())
        found[bits, size] = kept, off
        print(f"{bits} bits, an update that moves the outputs by {size:.1%}: {kept:.0%} of it kept under an error of {off:.0%} of it; {same:.1%} of "
              f"the packed codes are those of the base; dequantised {norm(exact(inputs) - adapted(inputs)) / norm(update):.0e} off")
        assert norm(exact(inputs) - adapted(inputs)) < 1e-2 * norm(update)
for size, share in ((0.01, 0.1), (0.03, 0.25)):
    assert found[4, size][0] < share and found[4, size][1] > 1, "small updates are kept now"
assert found[4, 0.3][0] > 0.9 and found[8, 0.01][0] > 0.9 and 0.3 < found[8, 0.003][0] < 0.8

for kind in (LoRALinear, DoRALinear):
    runs = []
    for bits in (2, 3, 4, 5, 6, 8):
        try:
            mx.eval(kind.from_base(quantised(bits), r=8)(inputs))
            runs.append(bits)
        except ValueError as error:
            print(f"{kind.__name__}, {bits} bits: {str(error)[:70]}...")
    print(f"{kind.__name__} runs over {runs} bits")
    assert runs == ([2, 3, 4, 5, 6, 8] if kind is LoRALinear else [2, 4, 8]), "DoRA takes other bits now"
PY
