"""The learning rate as a pure function of the step: nothing to save, nothing to resume."""

from math import cos, pi

from rankfold.train.recipe import Schedule


def rate_factor(schedule: Schedule, step: int, total: int, warmup: float) -> float:
    """The factor in (0, 1] on the peak learning rate at `step` of `total` steps (0 ≤ step < total).

    A linear rise over the first `warmup`·`total` steps, then
    - "cosine": half a cosine down to zero (Loshchilov and Hutter 2017);
    - "one-cycle": a straight line down to zero (Smith and Topin 2018, without the momentum cycle);
    - "step": 1, then 1/10 from half and 1/100 from three quarters of all steps (He et al. 2016, section 4.2);
    - "constant": 1.
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
