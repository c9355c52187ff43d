"""Objectives: one from two functions, and one as a subclass with sums and a figure of its own."""

import torch

import rankfold as rf
from rankfold.objectives import register

WORST = register(
    rf.objective(
        "worst error",
        loss=lambda output, batch: (output - batch[1]).square().mean(),
        figure=lambda output, batch: (output - batch[1]).abs().amax(1),
    )
)


class Within(rf.Objective):
    """Share of the samples whose outputs are all within ``width`` of their targets."""

    name = "within"
    width = 0.5

    def losses(self, output, batch, smoothing=0.0):
        return torch.nn.functional.huber_loss(output, self.target(batch).to(output)), len(output)

    def measure(self, output, batch, taught=None):
        near = (output - self.target(batch).to(output)).abs().amax(1) <= self.width
        return {"near": near.sum(), "samples": torch.tensor(len(output))}

    def conclude(self, sums):
        return (rf.Figure("within", float(sums["near"] / sums["samples"]), True, "fraction"),), None


WITHIN = register(Within())
