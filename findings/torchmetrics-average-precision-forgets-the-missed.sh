#!/usr/bin/env bash
# torchmetrics 1.9.0, torch 2.13.0, Python 3.11
#
# Guess: retrieval_average_precision(scores, relevant, top_k=k), and RetrievalMAP(top_k=k), is the sum of the precision at each
# hit within k, over the number of relevant documents (or over the smaller of that and k): what was missed lowers it.
# Seen: it is divided by the number of hits within k, so that missed documents cost nothing. One hit in the first place and
# nine misses, with ten relevant: 1.0. A better list that finds a second one at place 10 has less, .6. Without top_k it is as
# guessed. NDCG and recall with top_k count the missed ones.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.13.0 numpy
OMP_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import torch
import torchmetrics
from torchmetrics.functional.retrieval import retrieval_average_precision, retrieval_normalized_dcg
from torchmetrics.retrieval import RetrievalMAP

assert torchmetrics.__version__ == "1.9.0", torchmetrics.__version__
documents, k = 40, 10
scores = torch.arange(documents, 0, -1.0)


def judged(places, top_k):
    relevant = torch.zeros(documents, dtype=torch.long)
    relevant[places] = 1
    seen = float(retrieval_average_precision(scores, relevant, top_k=top_k))
    whole = RetrievalMAP(top_k=top_k)(scores, relevant, indexes=torch.zeros(documents, dtype=torch.long))
    assert abs(seen - float(whole)) < 1e-6
    hits = [place for place in places if place < (top_k or documents)]
    total = sum((number + 1) / (place + 1) for number, place in enumerate(hits))
    print(f"top_k={top_k}, hits at {[place + 1 for place in hits]} of {len(places)} relevant: seen {seen:.3f}, over the relevant "
          f"{total / len(places):.3f}, over the hits {total / len(hits):.3f}; "
          f"NDCG {float(retrieval_normalized_dcg(scores, relevant, top_k=top_k)):.3f}")
    return seen, total / len(places), total / len(hits)


late = list(range(31, 40))
worse, _, over_hits = judged([0, *late], k)
assert worse == over_hits == 1.0, "missed documents count now"
better, _, over_hits = judged([0, 9, *late[1:]], k)
assert abs(better - over_hits) < 1e-6 and better < worse
seen, over_relevant, _ = judged([0, 9, *late[1:]], None)
assert abs(seen - over_relevant) < 1e-6
PY
