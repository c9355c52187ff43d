#!/usr/bin/env bash
# gensim 4.4.0, numpy 2, Python 3.11
#
# Guess: LsiModel(num_topics=10) has ten topics where the documents have ten directions far above their noise, and a corpus that is read
# in several chunks gives nearly those of one.
# Seen: whenever two chunks are merged, the last directions that hold a thousandth of the squares together are thrown away, however
# clear they are: in the squares of values that is all below about a thirtieth of the first one, and in documents of non-negative numbers
# the first is the mean. Of eight topics in 2,000 documents with a mean, each more than fifteen times the noise, eight are found in one
# chunk, six in two and four in twenty. A chunk is 20,000 documents by default, and each add_documents begins another. Nothing but a
# line of the log at level INFO says so.
# Subtract the mean of each term, or take a chunk as large as the corpus, and look at len(projection.s).
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet gensim==4.4.0 'numpy>=2,<3' 'scipy<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import importlib.metadata

import numpy as np
from gensim.models import LsiModel

assert importlib.metadata.version("gensim") == "4.4.0"
rng = np.random.default_rng(0)
documents, terms, topics = 2000, 100, 8
planted = 0.3 * rng.standard_normal((documents, topics)) @ rng.standard_normal((topics, terms))
noise = 0.1 * rng.standard_normal((documents, terms))


def values_of(matrix, chunk, wanted):
    corpus = [list(enumerate(row.tolist())) for row in matrix]
    names = {term: str(term) for term in range(terms)}
    return LsiModel(corpus, id2word=names, num_topics=wanted, chunksize=chunk, random_seed=0).projection.s


found = {}
for mean, wanted in ((10.0, topics + 1), (0.0, topics)):
    matrix = planted + noise + mean
    exact = np.linalg.svd(matrix, compute_uv=False)
    print(f"mean {mean:g}: values {np.round(exact[: wanted + 1], 1).tolist()}")
    for chunk in (documents, 1000, 500, 100):
        values = values_of(matrix, chunk, wanted)
        off = np.abs(values / exact[: len(values)] - 1).max()
        found[mean, chunk] = len(values)
        print(f"  chunks of {chunk}: {len(values)} topics of {wanted}, values {off:.1e} off")
        assert off < 0.01
assert exact[topics - 1] > 15 * exact[topics]
assert found[10.0, documents] == topics + 1 and all(found[0.0, chunk] == topics for chunk in (documents, 1000, 500, 100))
assert found[10.0, 1000] < topics + 1 and found[10.0, 100] < topics, "merged chunks keep the topics now"
PY
