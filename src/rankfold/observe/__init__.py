"""The only room that registers hooks: passes over data, and what is seen of a model while it runs."""

from rankfold.observe.passes import Samples
from rankfold.observe.watch import after, before, first_of

__all__ = ["Samples", "after", "before", "first_of"]
