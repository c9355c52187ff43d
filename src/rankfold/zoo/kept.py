"""What takes seconds to make and is always the same, kept between processes as a file of plain tensors."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rankfold.run.disk.cache import cache_folder


def kept(name: str, identity: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What ``make`` returns: from the cache, ``$RANKFOLD_CACHE`` or ~/.cache/rankfold, where it has been made before.

    ``identity``: everything that the result depends on; another identity is another file. Tensors from the cache are
    mapped from the file. One that cannot be read is made anew; one that cannot be written is a warning.
    """
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    file = cache_folder() / f"{name}-{digest}.safetensors"
    if file.is_file():
        try:
            return load_file(file)
        except (SafetensorError, OSError):
            pass
    made = make()
    try:
        _write(file, made)
    except OSError as error:
        warnings.warn(f"the decoded {name} could not be kept for next time: {error}", stacklevel=3)
    return made


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all, also when two processes decode at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        unfinished = Path(folder) / file.name
        save_file(tensors, unfinished)
        os.replace(unfinished, file)
