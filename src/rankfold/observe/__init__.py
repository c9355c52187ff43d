"""The only room that registers hooks: passes over data, and what is seen of a model while it runs."""

from rankfold.observe.passes import Samples
from rankfold.observe.reach import unheard
from rankfold.observe.watch import Enough, after, before, first_of, with_first

__all__ = ["Enough", "Samples", "after", "before", "first_of", "unheard", "with_first"]
