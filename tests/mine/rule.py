"""A rank rule: from the last layer to the first, each takes the cheapest option until the budget is met."""

from dataclasses import dataclass

import rankfold as rf


@dataclass(frozen=True)
class LastFirst:
    name: str = "last first"
    across_forms = True

    def choose(self, choices, limits, known):
        picked = {site: options[0] for site, options in choices.items()}
        for site in reversed(choices):
            if all(sum(o.costs[axis] for o in picked.values()) <= limit for axis, limit in enumerate(limits)):
                return picked
            picked[site] = min(choices[site], key=lambda option: option.costs)
        return picked


LAST_FIRST = rf.register_rule(LastFirst())
