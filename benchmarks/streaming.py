"""Memory and time of a model that goes through block by block: random Llamas of any depth and width, one process each.

    python benchmarks/streaming.py --blocks 4 16 --out /tmp/streaming          # depth: hidden 2,048
    python benchmarks/streaming.py --blocks 1 --hidden 4096 --ffn 11008 --kv 4096 --dtype bfloat16 --memory 4GB

The folder is written a block at a time, too. Printed: the peak of resident memory above that of the idle process (torch
and transformers imported, a small model streamed before), seconds, seconds for each block. A run that was ended goes on
where it was: call it again with the same ``--out``; its peak is then the highest of its parts, its time their sum.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rankfold.run.disk.files import write_atomically
from rankfold.run.processes.process import ends_with


def written(place: Path, blocks: int, hidden: int, ffn: int, kv: int, vocabulary: int, dtype: str = "float32") -> Path:
    """A folder with random weights, never more than a tensor in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from rankfold import hub

    if (place / "model.safetensors.index.json").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=blocks,
        num_attention_heads=hidden // 64, num_key_value_heads=kv // 64, tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"], dtype=dtype,
    )  # fmt: skip
    config.save_pretrained(place)
    generator, index = torch.Generator().manual_seed(0), {}
    for number, (name, like) in enumerate(hub.skeleton(place).named_parameters()):
        scale = like.shape[-1] ** -0.5
        value = torch.randn(like.shape, generator=generator) * scale if like.dim() > 1 else torch.ones(like.shape)
        file = f"model-{number:05d}.safetensors"
        save_file({name: value.to(getattr(torch, dtype))}, place / file, {"format": "pt"})
        index[name] = file
    text = json.dumps({"metadata": {}, "weight_map": index})
    (place / "model.safetensors.index.json").write_text(text)
    return place


def resident(key: str) -> int:
    """Bytes: ``VmRSS`` now, ``VmHWM`` at its highest since that was forgotten."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return 1024 * int(line.split()[1])


class Watch:
    """Peak above ``idle`` and seconds so far, kept in a file twice a second, so that parts of a run add up."""

    def __init__(self, file: Path, idle: int) -> None:
        self.file, self.idle, self.began = file, idle, time.perf_counter()
        self.before = json.loads(file.read_text()) if file.exists() else {"peak": 0, "seconds": 0.0}
        threading.Thread(target=self._beat, daemon=True).start()

    def noted(self) -> dict[str, float]:
        peak = max(self.before["peak"], resident("VmHWM") - self.idle)
        found = {"peak": peak, "idle": self.idle, "seconds": self.before["seconds"] + time.perf_counter() - self.began}
        write_atomically(self.file, json.dumps(found).encode())
        return found

    def _beat(self) -> None:
        while True:
            time.sleep(0.5)
            self.noted()


def measured(folder: Path, out: Path, memory: int, tokens: int, only: list[str]) -> dict[str, float]:
    """One streamed compression, in this process."""
    import torch

    import rankfold as rf
    from rankfold.pipeline import Settings
    from rankfold.run.progress import Tell
    from rankfold.sites import Names

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def run(folder: Path, out: Path, memory: int, tokens: int, vocabulary: int, settings: Settings) -> rf.Streamed:
        ids = torch.randint(vocabulary, (tokens // 64, 64), generator=torch.Generator().manual_seed(1))
        parts = (ids[:-2], ids[-2:-1], ids[-1:])
        data = tuple([{"input_ids": row} for row in part.split(2)] for part in parts)
        said = Tell(say=lambda sentence: print(sentence, file=sys.stderr, flush=True))
        return rf.stream(folder, data, ("params=0.8", "of=sites"), out, memory=memory, settings=settings, tell=said)

    with tempfile.TemporaryDirectory() as small:
        place = written(Path(small) / "small", 3, 128, 256, 64, 100)
        run(place, Path(small) / "out", 10**9, 640, 100, Settings("sequential"))
    method = rf.Sequential(ridge=1e-2)  # one ridge: fewer decompositions, the same memory
    settings = Settings(method, where=Names(tuple(only)))
    Path("/proc/self/clear_refs").write_text("5")
    watch = Watch(out.with_name(f"watch-{out.name}.json"), resident("VmRSS"))
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    found = run(folder, out, memory, tokens, vocabulary, settings)
    counts = {"changed": len(found.plan.changed), "sites": len(found.plan.entries)}
    return {**watch.noted(), "block": found.needs["block"], **counts}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--blocks", type=int, nargs="+", default=[4, 16])
    parse.add_argument("--hidden", type=int, default=2048)
    parse.add_argument("--ffn", type=int, default=5632)
    parse.add_argument("--kv", type=int, default=256, help="outputs of k and v")
    parse.add_argument("--vocabulary", type=int, default=1000)
    parse.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parse.add_argument("--tokens", type=int, default=1024)
    parse.add_argument("--memory", default="1.3GB")
    parse.add_argument("--only", nargs="*", default=[])
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--one", type=int, help="in this process, for the one of this number (called by itself)")
    given = parse.parse_args()
    from rankfold.report.quantities import bytes_of

    rows = []
    for blocks in given.blocks:
        name = f"{given.hidden}-{blocks}"
        folder, out = given.out / f"dense-{name}", given.out / f"small-{name}"
        if given.one:
            ends_with(given.one)  # a run that is ended from outside leaves nothing behind
            print(json.dumps(measured(folder, out, bytes_of(given.memory), given.tokens, given.only)))
            return
        written(folder, blocks, given.hidden, given.ffn, given.kv, given.vocabulary, given.dtype)
        if not (out / "measured.json").exists():
            asked = [sys.executable, __file__, *sys.argv[1:], "--one", str(os.getpid()), "--blocks", str(blocks)]
            told = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout
            (out / "measured.json").write_text(told)
        row = json.loads((out / "measured.json").read_text())
        rows.append(row)
        print(
            f"{blocks} blocks of {row['block'] / 1e6:.0f} MB: peak {row['peak'] / 1e6:,.0f} MB above idle "
            f"({row['idle'] / 1e6:.0f} MB), bound {given.memory}; {row['seconds']:.0f} s, "
            f"{row['seconds'] / blocks:.1f} s a block; {row['changed']} of {row['sites']} layers changed",
            flush=True,
        )
    if len(rows) > 1:
        print(f"the deepest takes {100 * (rows[-1]['peak'] / rows[0]['peak'] - 1):+.1f} % of the memory of the first")
    each = rows[-1]["seconds"] / given.blocks[-1]
    print(f"32 such blocks, extrapolated: {32 * each / 60:.0f} minutes")


if __name__ == "__main__":
    main()
