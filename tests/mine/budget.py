"""A budget: energy of one sample, in picojoules: so much for each multiply-add, and more for each weight fetched."""

from dataclasses import dataclass

import rankfold as rf


@rf.register_budget
@dataclass(frozen=True)
class Energy(rf.Resource):
    kind: str = "joules"

    def of(self, cost):
        return 4.6 * cost.flops / 2 + 640.0 * cost.bytes / 4
