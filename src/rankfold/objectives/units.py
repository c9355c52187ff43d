"""In what the difference of two networks is expressed: keys for files, and what people read for them."""

from __future__ import annotations

TOKEN = "nats per token"
NATS = "nats per sample"
CHANGE = "squared change"
COSINE = "one less the cosine"

WORDS = {
    TOKEN: "nats of KL divergence from the original, per token",
    NATS: "nats of KL divergence from the original, for one sample",
    CHANGE: "squared change of the judged outputs as a fraction of their variance, for one sample",
    COSINE: "one less the cosine with the original's vector, for one sample",
}


def in_words(unit: str) -> str:
    """What ``unit`` means; a key that is not known stays as it is."""
    return WORDS.get(unit, unit)
