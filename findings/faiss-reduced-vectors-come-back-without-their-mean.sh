#!/usr/bin/env bash
# faiss-cpu 1.15.1, numpy 2, Python 3.11
#
# Guess: reconstruct() of an index "PCA16,Flat", and reverse_transform of its PCAMatrix, give the vector back as a PCA of 16 directions
# does (scikit-learn's inverse_transform): its projection about the mean.
# Seen: the mean is subtracted in all directions on the way there and added in the 16 kept ones alone on the way back, so that vectors
# come back without the rest of their mean: with a mean of 3 and deviations of 1 and less, off by 4.3 times their deviations where
# PCA leaves 0.29. So it is with OPQ to fewer dimensions ("OPQ4_16,..."), whose directions are those of centred vectors. At full size all is
# right, and so are distances. Add (1 - A'A) mean to what comes back, and subtract the mean before you build the index if you can.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet faiss-cpu==1.15.1 'numpy>=2,<3' packaging
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import faiss
import numpy as np

assert faiss.__version__ == "1.15.1", faiss.__version__
faiss.omp_set_num_threads(1)
rng = np.random.default_rng(0)
size, count, kept = 32, 5000, 16
spread = rng.standard_normal((count, size)) * np.logspace(0, -1, size) @ np.linalg.qr(rng.standard_normal((size, size)))[0]
values = np.linalg.svd(spread - spread.mean(0), compute_uv=False)
best = float(np.sqrt((values[kept:] ** 2).sum() / (values**2).sum()))


def pca(vectors, directions):
    index = faiss.index_factory(size, f"PCA{directions},Flat")
    index.train(vectors)
    index.add(vectors)
    rows = faiss.vector_to_array(faiss.downcast_VectorTransform(index.chain.at(0)).A).reshape(directions, size)
    return index.reconstruct_n(0, count), rows


def opq(vectors, directions):
    turn = faiss.OPQMatrix(size, 4, directions)
    product = faiss.ProductQuantizer(directions, 4, 4)
    turn.pq, turn.niter = product, 5
    turn.train(vectors)
    return turn.reverse_transform(turn.apply(vectors)), faiss.vector_to_array(turn.A).reshape(directions, size)


for mean in (0.0, 0.5, 3.0):
    vectors = (spread - spread.mean(0) + mean).astype(np.float32)
    centre = vectors.mean(0)
    for way in (pca, opq):
        for directions in (kept, size):
            back, rows = way(vectors, directions)
            lost = centre - rows.T @ (rows @ centre)
            off, mended = (float(np.linalg.norm(found - vectors) / np.linalg.norm(vectors - centre)) for found in (back, back + lost))
            print(f"mean {mean:g}, {way.__name__} to {directions}: {off:.3g} of the deviations off, with the lost mean added {mended:.3g}")
            assert mended < 1.1 * best if directions == kept else max(off, mended) < 1e-4
            assert (off > 2 * best) == (directions == kept and mean > 0), "the mean comes back now"
PY
