"""The user's folder of what is kept between processes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$RANKFOLD_CACHE``, or rankfold in ``$XDG_CACHE_HOME``, or in ~/.cache."""
    chosen = os.environ.get("RANKFOLD_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankfold"
