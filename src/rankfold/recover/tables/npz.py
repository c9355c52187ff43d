"""Arrays of an ``.npz``: entries in three forms, or linear measurements in two."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from rankfold.recover.measurements.operators import Operator
from rankfold.recover.measurements.sensing import Gaussian, Measurements
from rankfold.recover.tables.memory import affordable, affordable_names
from rankfold.recover.tables.triplets import Duplicates, Triplets, triplets
from rankfold.run.disk.files import ARRAY_FAULTS

FORMS = (
    "give entries as rows, columns, values (and shape), as a matrix X with NaN for what is unknown, or as "
    "scipy.sparse.save_npz writes them; give measurements as y with A (count, m, n), or as y with seed, count "
    "and shape of Gaussian ones"
)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``, or that of an ``.npy`` as ``X``, without running any code in it. Raises ``ValueError``
    for any other or a damaged file."""
    with path.open("rb") as opened:
        start = opened.read(6)
    if not start:
        raise ValueError(f"{path} is empty")
    if start == b"\x93NUMPY":
        return {"X": _array(path)}
    if not start.startswith(b"PK"):
        raise ValueError(
            f"{path} is not an .npz or .npy, as NumPy writes them: give a text file a name that ends in .csv"
        )
    try:
        _sizes(path)
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except ARRAY_FAULTS as error:
        if isinstance(error, Lying):
            raise ValueError(f"{path}: {error}") from None
        if "Object arrays" in str(error):
            raise ValueError(
                f"{path} holds Python objects, which are not read: save names as text, array.astype(str)"
            ) from None
        raise ValueError(f"{path} cannot be read as .npz ({error}): is the file cut short?") from None


def _array(path: Path) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # refuses a file that is shorter than it says
        affordable(mapped.nbytes, "its array")
        return np.array(mapped)
    except ARRAY_FAULTS as error:
        told = "it holds Python objects, which are not read" if "objects" in str(error) else f"{error}"
        raise ValueError(
            f"{path} cannot be read as .npy ({told}): is it one matrix of numbers, as numpy.save writes it?"
        ) from None


class Lying(ValueError):
    """An array that is not as large as it says, or larger than this machine's memory."""


def _sizes(path: Path) -> None:
    """Raises ``Lying`` where an array would take more memory than there is, or more than the file holds of it."""
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as opened:
                version = np.lib.format.read_magic(opened)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(opened)
                wanted = math.prod(shape) * dtype.itemsize
                there = member.file_size - opened.tell()
            if wanted > there and not dtype.hasobject:
                raise Lying(
                    f"the array {member.filename.removesuffix('.npy')} should have shape {shape} and {wanted:,} "
                    f"bytes, and the file holds {there:,} of them"
                )
            total += wanted
    try:
        affordable(total, "its arrays")
    except ValueError as error:
        raise Lying(str(error)) from None


def from_arrays(arrays: dict[str, np.ndarray], duplicates: Duplicates = "refuse") -> Triplets:
    """Entries of the arrays of an ``.npz``, in the forms of `read_triplets`. Raises ``ValueError``."""
    if "X" in arrays:
        x = arrays["X"]
        if x.ndim != 2:
            raise ValueError(f"X is a matrix, got shape {x.shape}")
        if x.dtype.kind not in "buif":
            raise ValueError(f"X must be a matrix of numbers, got {x.dtype}")
        rows, columns = np.nonzero(~np.isnan(x))
        return triplets(rows, columns, x[rows, columns], shape=(x.shape[0], x.shape[1]))
    if "format" in arrays and "data" in arrays:
        sparse = _sparse(arrays)  # repeated coordinates are a sum, as scipy has it
        return triplets(
            sparse.coords[0],
            sparse.coords[1],
            sparse.data,
            shape=(sparse.shape[0], sparse.shape[1]),
            duplicates="sum" if duplicates == "refuse" else duplicates,
        )
    missing = [name for name in ("rows", "columns", "values") if name not in arrays]
    if len(missing) == 3:
        raise ValueError(
            f"its arrays ({', '.join(arrays) or 'none'}) are not those of entries or measurements: {FORMS}"
        )
    if missing:
        raise ValueError(f"it has the arrays {', '.join(arrays)}, and lacks {' and '.join(missing)}: {FORMS}")
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
                raise ValueError(
                    f"A of shape {a.shape} must have {m * n} columns for the shape ({m}, {n}), and has {a.shape[1]}"
                )
            a = a.reshape(-1, m, n)
        if a.ndim != 3:
            raise ValueError(
                "A must be an array (count, m, n), or (count, m·n) with the shape (m, n) beside it, got shape "
                f"{a.shape}"
            )
        operator: Operator = Measurements(a)
    elif {"seed", "count", "shape"} <= arrays.keys():
        shape, count = _pair(arrays["shape"]), _whole(arrays["count"], "count")
        if min(*shape, count) < 1 or y.shape != (count,):
            raise ValueError(
                f"y of shape {y.shape}, count {count} and shape {shape} do not fit together: y must have count numbers"
            )
        affordable(8 * shape[0] * shape[1], f"one measurement matrix of shape {shape}")
        operator = Gaussian(shape, count, _whole(arrays["seed"], "seed"))
    else:
        raise ValueError(
            "measurements y need their matrices A, or the seed, count and shape of Gaussian ones, and the "
            f"arrays are {', '.join(arrays)}"
        )
    return operator, y


def _pair(shape: np.ndarray) -> tuple[int, int]:
    if shape.shape != (2,) or shape.dtype.kind not in "iuf" or not all(float(size).is_integer() for size in shape):
        raise ValueError(f"shape must be the two numbers m, n, got {shape.tolist()}")
    return int(shape[0]), int(shape[1])


def _whole(value: np.ndarray, what: str) -> int:
    if value.size != 1 or value.dtype.kind not in "iu":
        raise ValueError(f"{what} must be one whole number, got {value.dtype} of shape {value.shape}")
    return int(value.reshape(()))


def _sparse(arrays: dict[str, np.ndarray]) -> Any:
    kind = arrays["format"].item()
    kind = kind.decode() if isinstance(kind, bytes) else kind
    parts = {"coo": ("row", "col"), "csr": ("indices", "indptr"), "csc": ("indices", "indptr")}.get(kind)
    if parts is None:
        raise ValueError(f"sparse format {kind} is not read: save it as csr, csc or coo")
    missing = [name for name in (*parts, "shape") if name not in arrays]
    if missing:
        raise ValueError(
            f"it has the arrays {', '.join(arrays)}, and lacks {' and '.join(missing)} of the sparse format {kind}"
        )
    shape, one, two = _pair(arrays["shape"]), arrays[parts[0]], arrays[parts[1]]
    affordable_names(shape, len(arrays["data"]))
    if kind == "coo":
        return scipy.sparse.coo_array((arrays["data"], (one, two)), shape=shape)
    make = scipy.sparse.csr_array if kind == "csr" else scipy.sparse.csc_array
    found = make((arrays["data"], one, two), shape=shape)
    found.check_format()
    return found.tocoo()
