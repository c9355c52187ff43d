"""Seeds of parts of a run, each a function of the run's seed and its number."""

import hashlib


def derived_seed(seed: int, part: int) -> int:
    """A 63-bit seed for one part (an epoch, a process), unrelated to that of any other (seed, part)."""
    return int.from_bytes(hashlib.sha256(f"{seed} {part}".encode()).digest()[:8], "big") >> 1
