"""The learning rate as a pure function of the step and of the losses so far: nothing more to save or to resume."""

from collections.abc import Sequence
from math import cos, pi

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rankfold.train.recipe import Plateau, Relax, Schedule


def rate_factor(schedule: Schedule, step: int, total: int, warmup: float) -> float:
    """The factor in (0, 1] on the peak learning rate at `step` of `total` steps (0 ≤ step < total).

    A linear rise over the first `warmup`·`total` steps, then
    - "cosine": half a cosine down to zero (Loshchilov and Hutter 2017);
    - "one-cycle": a straight line down to zero (Smith and Topin 2018, without the momentum cycle);
    - "step": 1, then 1/10 from half and 1/100 from three quarters of all steps (He et al. 2016, section 4.2);
    - "constant": 1;
    - "plateau": 1, and `plateau_factor` besides.
    """
    rise = round(warmup * total)
    if step < rise:
        return (step + 1) / (rise + 1)
    done = (step - rise) / max(total - rise, 1)
    if schedule == "cosine":
        return (1 + cos(pi * done)) / 2
    if schedule == "one-cycle":
        return 1 - done
    if schedule == "step":
        return 0.1 ** ((2 * step >= total) + (4 * step >= 3 * total))
    return 1.0


def decay_factor(relax: Relax | None, step: int, total: int) -> float:
    """The factor in [0, 1] on the weight decay at `step` of `total` steps."""
    return 1.0 if relax is None or step < round(relax.after * total) else relax.factor


def plateau_factor(losses: Sequence[float], how: Plateau) -> float:
    """The factor in (0, 1] on the learning rate after epochs with these validation losses.

    torch's own `ReduceLROnPlateau`, led through the whole run anew: its state is a function of the losses, which are
    in every checkpoint. Cost: O(epochs) scalars.
    """
    stand_in = torch.optim.SGD([torch.zeros(())], lr=1.0)
    scheduler = ReduceLROnPlateau(stand_in, factor=how.factor, patience=how.patience, threshold=how.threshold)
    for loss in losses:
        scheduler.step(loss)
    return stand_in.param_groups[0]["lr"]
