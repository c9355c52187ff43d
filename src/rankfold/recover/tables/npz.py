"""Arrays of an ``.npz``: entries in three forms, or linear measurements in two."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from rankfold.recover.measurements.operators import Operator
from rankfold.recover.measurements.sensing import Gaussian, Measurements
from rankfold.recover.tables.triplets import Duplicates, Triplets, triplets

FORMS = (
    "entries are rows, columns, values (and shape), a matrix X with NaN for unknown, or what scipy.sparse.save_npz "
    "writes; measurements are y with A (count, m, n), or y with seed, count and shape of Gaussian ones"
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, without running any code in it. Raises ``ValueError`` for what is none, or damaged."""
    with path.open("rb") as opened:
        start = opened.read(6)
    if not start:
        raise ValueError(f"{path} is empty")
    if start == b"\x93NUMPY":
        raise ValueError(f"{path} is one array (.npy), not an .npz of named ones: write it with numpy.savez")
    if not start.startswith(b"PK"):
        raise ValueError(f"{path} is not an .npz, as numpy.savez writes it: a text file needs a name that ends in .csv")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError) as error:
        if "Object arrays" in str(error):
            raise ValueError(f"{path} holds Python objects: save names as text, array.astype(str)") from None
        raise ValueError(f"{path} cannot be read as .npz ({error}): is the file cut short?") from None


def from_arrays(arrays: dict[str, np.ndarray], duplicates: Duplicates = "refuse") -> Triplets:
    """Entries of the arrays of an ``.npz``, in the forms of `read_triplets`. Raises ``ValueError``."""
    if "X" in arrays:
        x = arrays["X"]
        if x.ndim != 2:
            raise ValueError(f"X is a matrix, got shape {x.shape}")
        rows, columns = np.nonzero(~np.isnan(x.astype(np.float64)))
        return triplets(rows, columns, x[rows, columns], shape=(x.shape[0], x.shape[1]))
    if "format" in arrays and "data" in arrays:
        sparse = scipy.sparse.coo_array(_sparse(arrays))
        return triplets(sparse.coords[0], sparse.coords[1], sparse.data, shape=(sparse.shape[0], sparse.shape[1]))
    missing = [name for name in ("rows", "columns", "values") if name not in arrays]
    if len(missing) == 3:
        raise ValueError(f"its arrays are {', '.join(arrays) or 'none'}, where {FORMS}")
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing beside {', '.join(arrays)}: {FORMS}")
    return triplets(
        arrays["rows"],
        arrays["columns"],
        arrays["values"],
        shape=_pair(arrays["shape"]) if "shape" in arrays else None,
        duplicates=duplicates,
    )


def sensed(arrays: dict[str, np.ndarray]) -> tuple[Operator, np.ndarray]:
    """(operator, y) of the measurements in an ``.npz``: y (count,) with A (count, m, n), or (count, m·n) and shape; or
    with seed, count and shape of `Gaussian` ones. Raises ``ValueError``."""
    y = arrays["y"]
    if "A" in arrays:
        a = arrays["A"]
        if a.ndim == 2 and "shape" in arrays:
            m, n = _pair(arrays["shape"])
            if a.shape[1] != m * n:
                raise ValueError(f"A {a.shape} has {a.shape[1]} columns, its shape ({m}, {n}) needs {m * n}")
            a = a.reshape(-1, m, n)
        if a.ndim != 3:
            raise ValueError(f"A {a.shape} is to be (count, m, n), or (count, m·n) with the shape (m, n) beside it")
        operator: Operator = Measurements(a)
    elif {"seed", "count", "shape"} <= arrays.keys():
        operator = Gaussian(_pair(arrays["shape"]), int(arrays["count"]), int(arrays["seed"]))
    else:
        raise ValueError(
            f"measurements y need their matrices A, or the seed, count and shape of Gaussian ones; its arrays are "
            f"{', '.join(arrays)}"
        )
    return operator, y


def _pair(shape: np.ndarray) -> tuple[int, int]:
    if shape.shape != (2,):
        raise ValueError(f"shape is the two numbers m, n, got {shape.tolist()}")
    return int(shape[0]), int(shape[1])


def _sparse(arrays: dict[str, np.ndarray]) -> Any:
    kind, shape = arrays["format"].item(), tuple(arrays["shape"])
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind == "coo":
        return scipy.sparse.coo_array((arrays["data"], (arrays["row"], arrays["col"])), shape=shape)
    make = {"csr": scipy.sparse.csr_array, "csc": scipy.sparse.csc_array}.get(kind)
    if make is None:
        raise ValueError(f"sparse format {kind} is not read: save it as csr, csc or coo")
    return make((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
