"""What a job that goes through a model block by block will need of memory and disk, told before it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankfold.compress.layerwise.in_blocks import measured_bytes
from rankfold.compress.layerwise.pairs import bytes_beside
from rankfold.observe import Pages
from rankfold.observe.pages import bytes_in
from rankfold.report.quantities import count
from rankfold.run.disk.files import check_room
from rankfold.run.processes.memory import at_least
from rankfold.sites import Site, SiteList

BLOCKS = 2  # the block as it is, and as it becomes
ACTIVATIONS = 3  # what its modules give: as it is kept to be differentiated, its gradients, and what is on the way
LIBRARIES = 250_000_000  # what allocator and linear algebra take once they compute: 207 MB measured at width 512
# more of what the last module gives: that of the other network and, where it is no scores of tokens, as it is compared
_ANSWERS = {True: 1, False: 4}


class BoundError(ValueError):
    """A bound of memory that the smallest step of the work exceeds; one line with its parts and the smallest bound."""


@dataclass(frozen=True)
class Needs:
    """Bytes. ``block``: weights of the largest block, ``name`` of its first layer; ``sample``: what its modules give
    for one sample; ``matrix``: the statistics of the site with the largest ones, ``site``, beside the moments of a
    block; ``disk``: in all, ``model`` of it at the end; ``batch``: samples at a time within ``bound``; ``least``: of a
    batch that cannot be cut."""

    block: int
    name: str
    sample: int
    matrix: int
    site: str
    disk: int
    model: int
    bound: int
    batch: int
    least: int = 1

    @property
    def smallest(self) -> int:
        """The least bound that works."""
        return LIBRARIES + BLOCKS * self.block + ACTIVATIONS * self.sample * self.least + self.matrix

    @property
    def moments(self) -> int:
        """What is left of the bound for statistics."""
        return self.bound - LIBRARIES - BLOCKS * self.block - ACTIVATIONS * self.sample * self.batch

    def check(self, directory: Path) -> None:
        """``BoundError`` for too little memory, ``OSError`` for too little disk, each in one line."""
        if self.bound < self.smallest:
            samples = "one sample" if self.least == 1 else f"the {self.least} samples of a batch that cannot be cut"
            parts = {
                f"the weights of one block ({self.name}), twice": BLOCKS * self.block,
                f"the activations of {samples}": ACTIVATIONS * self.sample * self.least,
                f"the statistics of one layer ({self.site}) and the moments of a block": self.matrix,
                "torch and its linear algebra, once they compute": LIBRARIES,
            }
            *some, last = [f"{count(size, 'B')} for {what}" for what, size in parts.items()]
            told = f"{', '.join(some)} and {last}"
            raise BoundError(
                f"--memory {count(self.bound, 'B')} is too small: the process grows by {told}. Give at least "
                + at_least(self.smallest)
            )
        check_room(directory, self.disk)

    def __str__(self) -> str:
        taken = count(ACTIVATIONS * self.sample * self.batch, "B")
        samples = f"{self.batch} samples" if self.batch > 1 else "one sample"
        return (
            f"memory: the process grows by at most {count(self.bound, 'B')}: {count(BLOCKS * self.block, 'B')} for the "
            f"weights of a block, {taken} for the activations of {samples} at a time, "
            f"{count(LIBRARIES, 'B')} for torch and its linear algebra, the rest for statistics; disk: "
            f"{count(self.disk, 'B')} while it runs, at most {count(self.model, 'B')} at the end"
        )


def needs_of(
    pages: Pages, found: SiteList, few: int, least: int, samples: int, most: int, metric_samples: int, bound: int,
    by_token: bool,
) -> Needs:  # fmt: skip
    """What the work on ``samples`` samples needs, at most ``most`` of them at a time and at least ``least``; ``pages``
    were cut with ``few`` of them."""
    chain, sizes = pages.chain, pages.sizes()
    here = {site.name: site for site in found.reducible}
    inside = [[here[name] for group in span.groups for name in group if name in here] for span in chain.spans]
    widest = max(range(len(sizes)), key=lambda number: sizes[number])
    largest = max((site for group in inside for site in group), key=measured_bytes)
    matrix = measured_bytes(largest) + max(
        bytes_beside([[here[n] for n in g if n in here] for g in span.groups], here) for span in chain.spans
    )
    spans = zip(chain.spans, bytes_in(chain), strict=True)
    sample = (
        max(size + (_ANSWERS[by_token] * chain.calls[-1].size if span.end is None else 0) for span, size in spans)
        // few
    )
    known = dict(pages.network.named_parameters())
    model = sum(p.numel() * p.element_size() for p in known.values())
    fixed = LIBRARIES + BLOCKS * sizes[widest] + matrix
    batch = min(most, max(bound - fixed, 0) // (2 * ACTIVATIONS * max(sample, 1)))
    names = [site.name for site in inside[widest]] or sorted(pages.parts[widest])
    return Needs(
        sizes[widest], names[0], sample, matrix, largest.name,
        _disk(pages, inside, few, samples, metric_samples) + model, model, bound, max(batch, least), least,
    )  # fmt: skip


def _disk(pages: Pages, inside: Sequence[Sequence[Site]], few: int, samples: int, metric_samples: int) -> int:
    """What the work keeps there for a time: activations at all borders, then those of one block; metrics; fits of one
    block in float64, with those of one shot."""
    calls = {call.name: call.size for call in pages.chain.calls}
    borders = [sum(pages.chain.calls[n].size for n in s.end.state) for s in pages.chain.spans if s.end is not None]
    first = sum(borders) * samples + 2 * max(borders, default=0) * min(metric_samples, samples)
    block = max(sum(2 * calls[site.name] for site in group) for group in inside)
    fits = max(sum(2 * 8 * site.groups * site.shape[0] * site.shape[1] for site in group) for group in inside)
    second = (4 * max(borders, default=0) + block) * samples
    metrics = sum(8 * site.groups * min(site.shape) ** 2 for group in inside for site in group)
    return max(first, second + fits * few) // few + metrics
