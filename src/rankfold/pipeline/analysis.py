"""How low-rank every matrix of a model is: of its weight, and of its outputs on data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rankfold.linalg.brief import brief
from rankfold.run.progress import Progress, showing
from rankfold.sites import Form, Site, SiteList, opened, sites, unwrap
from rankfold.sites.wish import Where
from rankfold.spectrum import Spectrum, kept, spectrum
from rankfold.train import feed

ENERGIES = (0.9, 0.99)


@dataclass(frozen=True)
class SiteAnalysis:
    """One site's weight, and, where data was given, the ranks that keep 90 and 99 % of its output's energy.

    ``output_ranks`` is None without data, and for sites that the data never reach.
    """

    site: Site
    params: int
    spectrum: Spectrum
    output_ranks: tuple[int, ...] | None

    __repr__ = brief

    @property
    def weight_ranks(self) -> tuple[int, ...]:
        """Ranks that keep 90 and 99 % of the weight's energy."""
        return tuple(self.spectrum.rank_for(energy) for energy in ENERGIES)

    def to_dict(self) -> dict[str, Any]:
        """A row of the table, as plain values."""
        m, n = self.site.shape
        return {
            "site": self.site.name,
            "kind": self.site.kind,
            "shape": [m, n],
            "groups": self.site.groups,
            "params": self.params,
            "stable_rank": self.spectrum.stable_rank,
            "effective_rank": self.spectrum.effective_rank,
            "numerical_rank": self.spectrum.numerical_rank(torch.finfo(torch.float32).eps * max(m, n)),
            "rank_90": self.weight_ranks[0],
            "rank_99": self.weight_ranks[1],
            "output_rank_90": None if self.output_ranks is None else self.output_ranks[0],
            "output_rank_99": None if self.output_ranks is None else self.output_ranks[1],
            "note": self.site.note,
        }


@showing
def analyse(
    model: nn.Module,
    data: Any = None,
    *,
    samples: int = 2048,
    where: Where | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[SiteAnalysis, ...], SiteList]:
    """Every site of ``model`` with its spectrum, and the list of sites, which says what was left out and why.

    ``where`` narrows the sites, as in ``rankfold.sites``. The numerical rank counts what stands out of float32
    rounding. ``data`` as in ``rankfold.batches.batches_of``. Raises ``ValueError`` naming the site for weights that are
    not finite. Cost: one decomposition of every site, and with ``data`` one pass over ``samples`` samples.
    """
    root, tell = unwrap(model), progress or (lambda what, done, total: None)
    found = sites(root, where)
    spectra: list[tuple[Site, int, Spectrum]] = []
    with opened(root):
        for site in found:
            try:
                spectra.append((site, site.weight(root).numel(), spectrum(site.matrix(root))))
            except (ValueError, ArithmeticError) as error:
                raise ValueError(f"{site.title}: {error}") from error
            tell("decomposing", len(spectra), len(found))
    ranks = _output_ranks(root, data, found, samples, tell) if data is not None and found.reducible else {}
    return tuple(SiteAnalysis(*row, ranks.get(row[0].name)) for row in spectra), found


def _output_ranks(
    root: nn.Module, data: Any, found: SiteList, samples: int, tell: Progress
) -> dict[str, tuple[int, ...]]:
    """By site the ranks that keep so much of its outputs' energy, of those that the data reach."""
    from rankfold.compress.methods.project import Project  # with all that compresses, which spectra do not need
    from rankfold.compress.statistics import calibrate

    ranks: dict[str, tuple[int, ...]] = {}
    with feed.undrawn(data):
        known = calibrate(root, data, found, samples=samples, metric_samples=0, progress=tell).sites
    with opened(root):
        for site in found:
            if site.name in known and Form.FACTORED in site.forms:
                outputs = Project().decompose(site, Form.FACTORED, site.weight(root), known[site.name], site.bias(root))
                if outputs is not None:
                    left = outputs.errors.square()
                    ranks[site.name] = tuple(int(kept(left, energy).to(torch.int8).argmax()) for energy in ENERGIES)
    return ranks
