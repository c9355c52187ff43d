"""The only room that registers hooks: passes over data, and what is seen of a model while it runs."""

from rankfold.observe.calls import intercepting
from rankfold.observe.chain import Border, Chain, Span, find_chain
from rankfold.observe.pages import PAGES, Pages, PagesError, Sink
from rankfold.observe.passes import Samples
from rankfold.observe.reach import unheard
from rankfold.observe.replay import Replay, State
from rankfold.observe.tape import AnotherWay, Tape, Taping, rebuilt
from rankfold.observe.watch import Enough, after, before, first_of, with_first

__all__ = [
    "PAGES", "AnotherWay", "Border", "Chain", "Enough", "Pages", "PagesError", "Replay", "Samples", "Sink", "Span",
    "State", "Tape", "Taping", "after", "before", "find_chain", "first_of", "intercepting", "rebuilt", "unheard",
    "with_first",
]  # fmt: skip
