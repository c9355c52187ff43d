#!/usr/bin/env bash
# sentence-transformers 6.2.0, torch 2.13.0, Python 3.11
#
# Guess: dot_score, and semantic_search with it, of embeddings that quantize_embeddings(..., "int8") made ranks as the dot products of
# these codes do, or refuses integers as cos_sim, euclidean_sim and manhattan_sim do.
# Seen: the products are summed in int8 and wrap around at 127: each score is the true one modulo 256, and with 64 numbers an
# embedding is hardly ever found by itself, where the same codes as float32 find all. No error and no warning; scores look like
# scores. Convert codes to float32 first, and subtract the ranges' offset: codes count from the smallest value of each dimension,
# so that even exact products of codes are no products of embeddings. semantic_search_faiss and semantic_search_usearch score by
# themselves and are not concerned.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet sentence-transformers==6.2.0 torch==2.13.0 'numpy<3'
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import sentence_transformers
import torch
from sentence_transformers import util

assert sentence_transformers.__version__ == "6.2.0", sentence_transformers.__version__
rng = np.random.default_rng(0)
found = {}
for size in (16, 64, 384):
    embeddings = rng.standard_normal((200, size)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    codes = util.quantize_embeddings(embeddings, "int8")
    scores, own = util.dot_score(codes, codes), torch.arange(200)
    exact = torch.from_numpy(codes.astype(np.int64) @ codes.astype(np.int64).T)
    wide = util.dot_score(codes.astype(np.float32), codes.astype(np.float32))
    assert scores.dtype == torch.int8, "sums are kept in a wider type now"
    assert torch.equal(scores.long(), (exact + 128) % 256 - 128) and torch.allclose(wide.double(), exact.double())
    found[size] = [float((table.argmax(1) == own).float().mean()) for table in (scores, wide)]
    print(f"{size} numbers each: scores from {int(scores.min())} to {int(scores.max())}, exact {int(exact.min())} to {int(exact.max())}; "
          f"found by themselves {found[size][0]:.1%} as int8, {found[size][1]:.1%} as float32")
    first = util.semantic_search(codes[:20], codes, score_function=util.dot_score, top_k=1)
    assert max(hits[0]["score"] for hits in first) <= 127
assert all(seen < 0.1 and exact > 0.95 for seen, exact in found.values())
for other in (util.cos_sim, util.euclidean_sim, util.manhattan_sim):
    try:
        other(codes, codes)
    except RuntimeError as refusal:
        print(f"{other.__name__}: {str(refusal).splitlines()[0]}")
    else:
        raise AssertionError(f"{other.__name__} takes int8 now")
PY
