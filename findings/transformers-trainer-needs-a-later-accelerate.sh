#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.1.0 and 1.3.0, torch 2.13.0, Python 3.11
#
# Guess: transformers asks for accelerate >= 1.1.0, in its metadata and where its Trainer is made; so with 1.1.0 the Trainer trains.
# Seen: with 1.1.0 pip is content and the Trainer is made, and train() ends before the first step in a TypeError about an argument
# that Accelerator.unwrap_model() has from 1.3.0 on (`keep_torch_compile`), which says nothing of versions. Ask for accelerate >= 1.3
# yourself.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 accelerate==1.1.0 "numpy>=2,<3"
cat >"$place/train.py" <<'PY'
import logging
import os
import sys
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import accelerate
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.utils.import_utils import ACCELERATE_MIN_VERSION

assert transformers.__version__ == "5.24.0", transformers.__version__
assert ACCELERATE_MIN_VERSION == "1.1.0", ACCELERATE_MIN_VERSION
torch.manual_seed(0)
model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2))
data = [{"input_ids": row, "labels": row} for row in torch.randint(20, (8, 8))]
how = TrainingArguments(sys.argv[1], max_steps=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no")
trainer = Trainer(model, how, train_dataset=data)
steps = []


class Watched(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        steps.append(state.global_step)


trainer.add_callback(Watched)
try:
    trainer.train()
except TypeError as error:
    print(f"accelerate {accelerate.__version__}: steps {steps} were made, then: {error}")
    sys.exit(3 if not steps else 1)
print(f"accelerate {accelerate.__version__}: steps {steps} were made, saved: {sorted(os.listdir(sys.argv[1]))}")
PY
cd "$place"
run() { CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 "$place/venv/bin/python" train.py "$1" 2>/dev/null; }
code=0
run first || code=$?
[ "$code" = 3 ] || { echo "accelerate 1.1.0 does now"; exit 1; }
"$place/venv/bin/pip" install --quiet accelerate==1.3.0
run second
echo "as found"
