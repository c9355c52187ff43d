"""What would pay: a short look at a model, its data and this machine, and what it says in plain words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from rankfold.batches import batches_of, copied, labels_of
from rankfold.compress.applying.apply import apply_
from rankfold.compress.planning.plan import Plan
from rankfold.compress.planning.profile import Calibration, Profile
from rankfold.compress.planning.profiling import meant, profile
from rankfold.compress.repair.batchnorm import Reference, reestimate_
from rankfold.costs import CALLED, Cost
from rankfold.objectives import Figure, Figures, Objective, Teacher
from rankfold.observe.passes import separable
from rankfold.pipeline.advice.found import Advice, Saved, Tried
from rankfold.pipeline.advice.spending import KEPT, Look, affordable, profiled_within, seconds_of_one
from rankfold.pipeline.compression.outcome.measure import calibration_part, first_example
from rankfold.pipeline.quality.halves import Half, few_of, sample_count
from rankfold.pipeline.quality.interval import fall
from rankfold.pipeline.quality.value import MaxDrop
from rankfold.run.ordinary import ordinarily
from rankfold.run.progress import Tell
from rankfold.sites import Form, SiteList, unwrap
from rankfold.sites.wish import Where
from rankfold.train import feed
from rankfold.train.breakdown import at_chance
from rankfold.train.evaluation import choose, counted
from rankfold.zoo.data import parts_of

BATCHES = (1, 64)
WORTH = 0.05  # of a network: smaller parts are not worth a word
_PROFILE = 0.5  # of the time, for a profile
_JUDGING = 0.45  # of the time that is then left, to judge in
SHOWN = 5  # layers and reasons that are named


@ordinarily
def advise(
    model: nn.Module,
    data: Any,
    *,
    seconds: float = 60.0,
    max_drop: float | str | None = None,
    by: str = "flops",
    objective: Objective | str | None = None,
    where: Where | None = None,
    batches: Sequence[int] = BATCHES,
    seed: int = 0,
    tell: Tell | None = None,
) -> Advice:
    """Look at ``model`` for about ``seconds``: what can be factored, what that costs in quality, what it gives in time.

    Quality comes first, at a handful of budgets, and latency with what is left of the time; what there was no time for
    is told. Networks are made by method ``project`` from a few hundred samples, BatchNorm statistics corrected, not
    trained; they are judged on validation samples, so that the test split stays closed. ``model`` is left as it is.

    Args:
        model: a trained network.
        data: with the parts ``train`` and ``validation`` (``rankfold.zoo.Data``, or any object with these), or a tuple
            of them, as in ``rankfold.pipeline.compress``.
        seconds: about how long to look.
        max_drop: how far the judging figure may fall, in points of a percentage or in its own unit; by default one
            point, or 2 % of the figure.
        by: what is to be small: "flops", "params" or "bytes".
        objective: what outputs and targets mean; told from the data by default.
        where: narrows the sites, as in ``rankfold.sites``.
        batches: batch sizes at which networks are timed.
        seed: of the samples that are drawn.
        tell: progress.

    Returns:
        An ``Advice``; ``best`` is the network that is recommended, or None.

    Raises:
        ValueError: ``by`` is none of these, ``max_drop`` is below 0 or more than the figure can fall by; validation
            data that are missing, empty, without a target that counts, or can be read only once; targets that tell no
            objective; and as ``rankfold.profile``.

    Cost: as many samples as a forward pass allows within ``seconds``, and at least 64, of a slow network 16: one whose
    profile alone takes longer goes over the time, as does one plan at least.

    Example:
        >>> from types import SimpleNamespace
        >>> x = torch.randn(96, 16); y = (x[:, 0] > 0).long()
        >>> data = SimpleNamespace(train=(x[:64], y[:64]), validation=(x[64:], y[64:]))
        >>> found = rf.advise(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), data, seconds=0.1)
        >>> found.sites, all(point.flops <= 1 for point in found.tried)
        (2, True)
    """
    if by not in CALLED:
        raise ValueError(f"by, what is to be small, must be one of {', '.join(CALLED)}, got {by!r}")
    asked = None if max_drop is None else _asked(max_drop, by)
    look, data = Look(seconds, tell or Tell()), parts_of(data)
    feed.check(data.validation, "validation", again=True)
    with feed.undrawn(data.train, data.validation):
        return _seen(look, unwrap(model), data, asked, by, objective, where, batches, seed)


def _seen(
    look: Look,
    root: nn.Module,
    data: Any,
    asked: MaxDrop | None,
    by: str,
    objective: Objective | str | None,
    where: Where | None,
    batches: Sequence[int],
    seed: int,
) -> Advice:
    example = first_example(root, data.train)
    each = seconds_of_one(root, example)
    said = getattr(data, "objective", None) if objective is None else None
    given = objective if said is None else said
    told = meant(root, data.train, given)
    if given is None and told is not None and isinstance(told.objective, Teacher) and _labelled(data.train):
        choose(root, data.train, None)  # refuses what nobody says and the data do not tell, as compress would
    meaning = None if told is None else told.objective
    if told is not None:
        look.tell.say(str(told if said is None else replace(told, why="as the data say")))
    tokens = meaning is not None and meaning.by_token
    taught = affordable(profiled_within(_PROFILE * look.seconds / each, tokens), each, 1024)
    calibration = calibration_part(data.train, taught, seed)
    known = profile(
        root, calibration, objective=meaning, example=example, where=where,
        calibration=Calibration(samples=taught), progress=look.tell.progress,
    )  # fmt: skip
    teacher = root if meaning is None or meaning.by_token or not meaning.labelled else None
    forwards = (len(KEPT) + 1) * (1 if teacher is None else 2)
    repairs = (len(KEPT) + 1) * taught if any(name.endswith("running_mean") for name, _ in root.named_buffers()) else 0
    judged = affordable((_JUDGING * look.left / each - repairs) / forwards, each, 2000)
    validation, reference = few_of(data.validation, judged, seed), Reference(root)
    part = Half(validation, sample_count(validation))
    batches_judged = part.cut if separable(root, next(iter(part.cut))) else validation

    def sums(network: nn.Module) -> list[Figures]:
        return counted(
            network, batches_judged, part.batch_size, role="validation", objective=meaning, teacher=teacher, apart=True
        )

    before = sums(root)
    start = fall(before, before).before
    allowed = _usual(start.judged) if asked is None else asked.allowed(start.judged)

    def made(plan: Plan) -> nn.Module:
        small = apply_(copied(root), plan, known)
        reestimate_(small, reference, calibration, samples=taught)
        return small

    def judge(plan: Plan) -> Tried:
        met = fall(before, sums(made(plan)))
        flops, params, held = (getattr(plan.after, kind) / max(getattr(plan.before, kind), 1) for kind in CALLED)
        kl = met.after.values.get("kl") if meaning is not None and meaning.by_token else None
        return Tried(
            flops, params, met.after.judged, met.drop, met.interval, {}, {}, _saved(plan, known, by), kl, held
        )  # fmt: skip

    plans, tried, untried = look.judged(known, by, judge)
    covered, tables, obstacles = _parts(root, known.sites, known)
    sites = sum(not site.layer.lookup for site in known.sites.reducible)
    found = Advice(
        known.cost, sites, covered, obstacles, start.judged, tuple(tried),
        allowed, (known.samples, part.samples),
        bool(meaning is not None and meaning.labelled), 0.0,
        start.chance is not None and at_chance(start.judged, start), tuple(untried), tables=tables, by=by,
    )  # fmt: skip
    found = look.timed(found, plans, made, root, example, each, batches)
    return replace(found, seconds=look.spent)


def _asked(max_drop: float | str, by: str) -> MaxDrop:
    asked = MaxDrop.of(max_drop, by)
    if asked.figure:
        raise ValueError(
            f"max_drop={max_drop!r}: advise looks at the judging figure alone: give a number, or use "
            "rankfold.smallest, which takes other figures by name"
        )
    return asked


def _usual(start: Figure) -> float:
    """How far the figure may fall where nothing is asked."""
    return 0.01 if start.unit == "fraction" else 0.02 * (abs(start.value) or 1.0)


def _saved(plan: Plan, known: Profile, by: str) -> tuple[Saved, ...]:
    """The layers that save most, the largest first."""
    made = []
    for entry in plan.changed:
        site = known.sites[entry.site]
        dense = known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias)
        made.append(
            Saved(
                entry.site, str(entry.form), entry.rank,
                (dense.flops - entry.flops) / max(plan.before.flops, 1),
                (dense.params - entry.params) / max(plan.before.params, 1),
            )
        )  # fmt: skip
    return tuple(sorted(made, key=lambda saved: -saved.share(by))[:SHOWN])


def _parts(
    root: nn.Module, found: SiteList, known: Profile
) -> tuple[tuple[float, float], float, tuple[tuple[float, str, str], ...]]:
    """The shares of parameters and FLOPs in layers that can be factored, that of parameters in tables that can be, and
    the largest parts outside of them."""
    whole = known.cost
    costs = [(site, known.counter.cost(site, Form.KEEP, 0, site.layer.has_bias)) for site in found.reducible]
    dense = sum((cost for site, cost in costs if not site.layer.lookup), Cost(0, 0, 0))
    tables = sum(cost.params for site, cost in costs if site.layer.lookup)
    parameters = dict(root.named_parameters(remove_duplicate=False))
    outside: defaultdict[str, tuple[int, str]] = defaultdict(lambda: (0, ""))
    named = [(name, why) for name, why in found.left_out if name in parameters]
    named += [(f"{site.name}.{site.layer.parameter}", site.note) for site in found if site.forms == {Form.KEEP}]
    counted_once = set[int]()  # a tied weight has two names
    for name, why in named:
        tensor = parameters.get(name)
        if tensor is None or id(tensor) not in counted_once:
            outside[why] = outside[why][0] + (0 if tensor is None else tensor.numel()), outside[why][1] or name
            counted_once.add(id(tensor))
    parts = sorted(((count / max(whole.params, 1), name, why) for why, (count, name) in outside.items()), reverse=True)
    shares = dense.params / max(whole.params, 1), dense.flops / max(whole.flops, 1)
    return shares, tables / max(whole.params, 1), tuple(part for part in parts[:SHOWN] if part[0] >= WORTH)


def _labelled(data: Any) -> bool:
    return any(labels_of(batch) is not None for batch in batches_of(data, 1, 1))
