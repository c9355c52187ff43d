#!/usr/bin/env bash
# xeofs 3.0.6, numpy 2, Python 3.11
#
# Guess: explained_variance_ratio() of all modes adds up to 1, with center=False as with the mean removed; cross_correlation_coefficients() of
# CCA are the canonical correlations, at most 1, as its docstring says.
# Seen: with center=False the modes contain the mean and the total that they are divided by does not: the shares add up to 4.8 here, and one
# mode "explains" 399 %. Correlations are too large by n / (n - 1), for scores are scaled with n and their product with n - 1: of ten
# samples equal views correlate with 1.11, and a score with itself too. CCA, MCA and RDA alike. Scores, components and reconstructions are
# right. No error, no warning. Divide squared singular values by their sum, and multiply correlations by (n - 1) / n.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet xeofs==3.0.6 'numpy>=2,<3' 'scipy<2' 'scikit-learn<2' 'pandas<4' 'statsmodels<1'
OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 "$place/venv/bin/python" -W ignore - <<'PY'
import numpy as np
import xarray
import xeofs

assert xeofs.__version__ == "3.0.6", xeofs.__version__
rng = np.random.default_rng(0)


def named(values, feature):
    return xarray.DataArray(values, dims=("sample", feature), coords={"sample": np.arange(len(values)), feature: np.arange(values.shape[1])})


spread = rng.standard_normal((40, 6)) * [5, 3, 2, 1, 0.5, 0.5]
for mean in (0.0, 5.0):
    data = spread - spread.mean(0) + mean
    for center in (True, False):
        fitted = xeofs.single.EOF(n_modes=6, center=center, solver="full").fit(named(data, "feature"), dim="sample")
        shares = fitted.explained_variance_ratio().values
        values = np.linalg.svd(data - data.mean(0) * center, compute_uv=False) ** 2
        back = fitted.inverse_transform(fitted.scores()).transpose("sample", "feature").values
        print(f"mean {mean}, center={center}: shares {np.round(shares, 3).tolist()} add up to {shares.sum():.3f}; of the squared singular values "
              f"the first is {values[0] / values.sum():.3f}; reconstruction {abs(back - data).max():.0e} off")
        assert abs(back - data).max() < 1e-10
        if center or mean == 0:
            assert abs(shares.sum() - 1) < 1e-10
        else:
            assert shares[0] > 1.2 and shares.sum() > 2, "shares add up to 1 now"

for samples in (10, 50):
    one = rng.standard_normal((samples, 4))
    for what, other in (("the same space", one @ rng.standard_normal((4, 4))), ("noise", rng.standard_normal((samples, 3)))):
        bases = [np.linalg.qr(view - view.mean(0))[0] for view in (one, other)]
        true = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)[:2]
        for kind in ("CCA", "MCA", "RDA"):
            model = getattr(xeofs.cross, kind)(n_modes=2, use_pca=False).fit(named(one, "x"), named(other, "y"), dim="sample")
            given = model.cross_correlation_coefficients().values
            scores = [view.transpose("sample", "mode").values for view in model.scores()]
            right = np.array([np.corrcoef(scores[0][:, mode], scores[1][:, mode])[0, 1] for mode in range(2)])
            own = np.diag(model.correlation_coefficients_X().values)
            print(f"{samples} samples and {what}, {kind}: given {np.round(given, 3).tolist()}, by numpy of the same scores "
                  f"{np.round(right, 3).tolist()}, of a score with itself {own[0]:.3f}")
            assert np.allclose(given, right * samples / (samples - 1), atol=1e-6), "correlations are right now"
            assert np.allclose(own, samples / (samples - 1), atol=1e-6)
            assert kind != "CCA" or np.allclose(right, true, atol=1e-6)
PY
