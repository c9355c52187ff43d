#!/usr/bin/env bash
# mofapy2 0.7.5 (MOFA+), numpy 2, Python 3.11
#
# Guess: impute() fills what is missing in the units of the data that were given, for every sample, and changes nothing of the factors.
# Seen: imputed_data is that of the centred data, known places too, and with scale_views in units of the view's deviation: as it stands
# it is off by more than a table of means. Add intercepts[view][group]; the deviation is kept nowhere, take np.nanstd of the centred
# view. A sample with a factor further than 5.88 deviations from the mean gets no values, NaN, in all views, and its factor is NaN in
# the model from then on: mask_outliers=False. With uncertainty=False impute raises TypeError.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet mofapy2==0.7.5 'numpy>=2,<3' 'scipy<2' 'pandas<4' 'scikit-learn<2'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import contextlib
import importlib.metadata
import io

import numpy as np

with contextlib.redirect_stdout(io.StringIO()):
    from mofapy2.run.entry_point import entry_point

assert importlib.metadata.version("mofapy2") == "0.7.5"
rng = np.random.default_rng(0)
factors = rng.standard_normal((200, 3))
factors[7, 0] = 9
loadings = [rng.standard_normal((features, 3)) for features in (30, 50)]
views = [unit * (factors @ part.T + 0.1 * rng.standard_normal((200, len(part)))) + mean
         for part, unit, mean in zip(loadings, (1, 100), (5, -300))]
missing = [rng.random(view.shape) < 0.2 for view in views]


def fitted(scale):
    model = entry_point()
    model.set_data_options(scale_views=scale, scale_groups=False)
    model.set_data_matrix([[np.where(gone, np.nan, view)] for view, gone in zip(views, missing)], likelihoods=["gaussian"] * 2)
    model.set_model_options(factors=5, spikeslab_weights=False, ard_weights=True)
    model.set_train_options(iter=300, convergence_mode="medium", seed=1, verbose=False, quiet=True)
    model.build()
    model.run()
    return model


for scale in (False, True):
    for options in ({}, {"mask_outliers": False}):
        with contextlib.redirect_stdout(io.StringIO()):
            model = fitted(scale)
            model.impute(**options)
        lost = np.isnan(model.model.nodes["Z"].getExpectations()["E"]).sum()
        for number, (view, gone) in enumerate(zip(views, missing)):
            found, mean = model.imputed_data["mean"][number], model.intercepts[number][0]
            deviation = np.nanstd(np.where(gone, np.nan, view) - mean) if scale else 1.0
            gaps = sorted({int(row) for row in np.where(np.isnan(found))[0]})
            kept = gone & ~np.isnan(found)
            off, mended = (float(np.linalg.norm((values - view)[kept]) / np.linalg.norm((view - view.mean(0))[kept]))
                           for values in (found, found * deviation + mean))
            print(f"scale_views={scale}, {options or 'as it is'}, view {number}: {off:.2f} of the deviations off, in the data's units "
                  f"{mended:.2f}; without values: samples {gaps}; factors lost: {lost}")
            assert off > 1 and mended < 0.1, "imputed values are in the units of the data now"
            assert np.allclose((found * deviation + mean)[~gone], view[~gone])
            assert (gaps == [7] and lost == 1) if not options else (not gaps and not lost), "outliers are imputed now"
try:
    with contextlib.redirect_stdout(io.StringIO()):
        fitted(False).impute(uncertainty=False)
except TypeError as error:
    print(f"uncertainty=False: TypeError, {error}")
else:
    raise AssertionError("uncertainty=False is taken now")
PY
