"""A short name for plain values, the same in every process and version."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def mark(values: Any, digits: int = 8) -> str:
    """The first hexadecimal ``digits`` of a digest of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:digits]
