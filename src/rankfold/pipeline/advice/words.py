"""An ``Advice`` in plain words, and the commands that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rankfold.costs import CALLED, speed
from rankfold.costs.times import apart
from rankfold.objectives import Figure
from rankfold.pipeline.advice.found import Advice, Tried
from rankfold.pipeline.quality.value import worsened

_NAMED = 0.01  # of all: what a layer must save to be named


def sentences(found: Advice) -> Iterator[str]:
    """What pays and what does not, one thought each."""
    yield from _reach(found)
    if not found.tried:
        what = CALLED[found.by]
        yield f"Nothing smaller could be made: factoring these layers does not even bring the {what} down to 90 %."
        return
    if found.unlearned:
        yield (
            f"No advice can be given: {found.start.name} is {found.start.text}, no better than chance. Were the "
            "trained weights loaded (--weights)?"
        )
        return
    best = found.best
    yield _price(found) if best is None else _pays(found, best)
    further = _beyond(found)
    if further is not None:
        yield further
    yield from _speed(found, best or found.tried[0])
    yield from _ran_out(found)
    named = [layer for layer in (() if best is None else best.layers) if layer.share(found.by) >= _NAMED]
    if named:
        told = ", ".join(f"{layer.site} ({_percent(layer.share(found.by))} of all)" for layer in named)
        yield f"Most {'parameters' if found.by == 'bytes' else CALLED[found.by]} are saved in {told}."


def commands(found: Advice, model: str, extra: str = "") -> Iterator[tuple[str, str]]:
    """(what for, command line), the most useful first. ``extra``: options that name weights and data."""
    if found.unlearned:
        return
    best, base = found.best, " ".join(filter(None, ("rankfold compress", model, extra)))
    searched = "" if found.by == "flops" else f" --smallest {found.by}"
    points = 100 * found.allowed if found.start.unit == "fraction" else found.allowed
    if best is not None:
        yield "the network described above", f"{base} --budget {found.by}={found.share(best):.2g} -o small"
        by_drop = f"{base} --max-drop {points:.3g}{searched} -o small"
        yield "the smallest that keeps its quality, searched finely", by_drop
    if found.tried:
        smaller = [p for p in found.tried if best is None or found.share(p) < found.share(best)]
        # none keeps its quality: the mildest, for what has lost most comes back least
        near = 0.5 if best is not None else 1.0
        target = min(smaller, key=lambda point: abs(found.share(point) - near), default=None)
        if target is not None:
            more = "--finetune-epochs 5" if found.labelled and found.start.name != "perplexity" else "--tune 100"
            budget = f"{found.by}={found.share(target):.2g}"
            yield "a smaller one, trained afterwards", f"{base} --budget {budget} {more} -o small"
        fastest = _faster(found)
        if fastest is not None:
            at = "" if fastest[1] == 1 else f"@{fastest[1]}"
            yield f"what saves time here at batch {fastest[1]}", f"{base} --budget latency=0.8{at} -o small"
    if best is None:
        yield "which matrices are near to low rank", " ".join(filter(None, ("rankfold analyze", model, extra)))


def _reach(found: Advice) -> Iterator[str]:
    params, flops = found.covered
    if not found.sites:
        yield "No: no layer of this network can be factored."
    else:
        layers = "one layer" if found.sites == 1 else f"{found.sites} layers"
        inside = f"{_percent(params)} of the parameters and {_percent(flops)} of the FLOPs"
        yield f"{inside} are in {layers} that can be factored."
    if found.tables:
        taken = "the budgets below take from them too"
        if found.by == "flops":
            taken = "budgets in parameters or bytes take from them too (--smallest params)"
        inside = f"{_percent(found.tables)} of the parameters are in tables that are looked up"
        yield f"{inside}: {taken}, which saves no time."
    for share, name, why in found.obstacles:
        yield f"{_percent(share)} of the parameters cannot, such as {name}: {why}."


def _pays(found: Advice, best: Tried) -> str:
    kinds = ("flops", "params") if found.by == "flops" else (found.by, "flops")
    less = [(1 - getattr(best, kind), CALLED[kind]) for kind in kinds]
    gone = " and ".join(f"{_percent(share)} of the {what}" for share, what in less if share > 0)
    grown = f" (the FLOPs grow by {_percent(best.flops - 1)})" if best.flops > 1 else ""
    looked = len(found.tried)
    budgets = "the one budget" if looked == 1 else f"the {looked} budgets"
    yes = f"Yes, as far as {budgets} that there was time for" if found.untried else "Yes"
    return (
        f"{yes}: without any training {gone} can go{grown}: {found.start.name} is {best.figure.text} instead of "
        f"{found.start.text} on {found.samples[1]:,} validation samples{_range(found.start, best)}."
    )


def _price(found: Advice) -> str:
    least = found.tried[0]
    return (
        f"Not without training: removing {_gone(found, least)} already leaves {found.start.name} at "
        f"{least.figure.text} instead of {found.start.text} on {found.samples[1]:,} validation samples"
        f"{_range(found.start, least)}, more than the {found.start.amount(found.allowed)} that may be lost."
    )


def _beyond(found: Advice) -> str | None:
    """What the next smaller network would cost, where one was tried."""
    best = found.best
    more = [point for point in found.tried if best is not None and found.share(point) < found.share(best)]
    if not more:
        if best is None or found.untried:  # what there was no time for is told
            return None
        return "Nothing smaller was tried: compress --max-drop searches further."
    point = more[0]
    after = f"{point.figure.text}{_range(found.start, point)}"
    return f"Without {_gone(found, point)} it would be {after}, which training afterwards may win back."


def _speed(found: Advice, point: Tried) -> Iterator[str]:
    if not point.latencies:
        return
    told = [_fast(point, batch) for batch in point.latencies]
    yield f"That network is {_verdict(point)}: {', '.join(told)}."
    fastest = _faster(found)
    if not point.faster and fastest is not None:
        larger, batch = fastest
        kept = f"{_percent(found.share(larger))} of the {CALLED[found.by]}"
        yield f"With {kept} it is {_fast(larger, batch)}."


def _verdict(point: Tried) -> str:
    if not point.faster:
        clear = "but not faster on this machine" if point.slower else "and no clear gain in time was measured"
        return f"smaller, {clear}"
    return "smaller and faster" if len(point.faster) == len(point.latencies) else "faster at some batch sizes only"


def _fast(point: Tried, batch: int) -> str:
    """At one batch size; where no difference is clear, with both times in place of their ratio."""
    before, after = point.beside[batch], point.latencies[batch]
    told = "" if apart(before, after) else f" ({before:.4g} ms before, {after:.4g} after)"
    return f"{speed(before, after)} at batch {batch}{told}"


def _ran_out(found: Advice) -> Iterator[str]:
    """What there was no time for."""
    missed = []
    if found.untried:
        shares = _listed([_percent(each) for each in found.untried])
        missed.append(f"{shares} of the {CALLED[found.by]} {_were(found.untried)} tried")
    if found.untimed:
        sizes = _listed([str(batch) for batch in found.untimed])
        missed.append(f"a batch of {sizes} {_were(found.untimed[:1])} timed")
    if missed:
        yield f"Time ran out: {', and '.join(missed)} (--seconds gives more)."


def _were(things: Sequence[object]) -> str:
    return "was not" if len(things) == 1 else "were not"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _faster(found: Advice) -> tuple[Tried, int] | None:
    """The largest network that is clearly faster at some batch size, and the size at which it gains most."""
    point = max((point for point in found.tried if point.faster), key=found.share, default=None)
    return None if point is None else (point, max(point.faster, key=point.speed))


def _gone(found: Advice, point: Tried) -> str:
    return f"{_percent(1 - found.share(point))} of the {CALLED[found.by]}"


def _range(figure: Figure, point: Tried) -> str:
    """The drop with its interval, and how far a language model is from the original, in brackets."""
    said = [*_drop(figure, point), *([] if point.kl is None else [f"KL {point.kl:.3g} nats a token from the original"])]
    return f" ({'; '.join(said)})" if said else ""


def _drop(figure: Figure, point: Tried) -> Iterator[str]:
    said, moved, interval = worsened(figure, point.drop, point.interval)
    if interval is None:
        return
    low, high = interval
    scale, unit = (100, "points") if figure.unit == "fraction" else (1, figure.unit)
    yield f"{said} {scale * moved:.3g}, 95 % interval {scale * low:.3g} to {scale * high:.3g} {unit}".rstrip()


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g} %" if fraction < 0.995 else f"{100 * fraction:.4g} %"
