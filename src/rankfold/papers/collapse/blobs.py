"""What figures 1 and 2 of the neural-rank-collapse paper share: grids of autoencoders of Gaussian blobs, λ and σ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rankfold.collapse.theory.gaussian import Mixture, mixture
from rankfold.papers.request import Request


@dataclass(frozen=True)
class Cell:
    """One autoencoder of four layers d → h → h → h → d on ``blobs`` of deviation ``sigma``: its fields are all."""

    decay: float
    sigma: float
    seed: int
    blobs: int
    samples: int
    dimension: int
    hidden: int
    iterations: int

    @property
    def title(self) -> str:
        return f"autoencoder-decay{self.decay:.3g}-sigma{self.sigma:.3g}-seed{self.seed}"

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.dimension, self.hidden, self.hidden, self.hidden, self.dimension)

    @property
    def data(self) -> Mixture:
        generator = torch.Generator().manual_seed(self.seed)
        return mixture(self.samples, self.dimension, self.blobs, self.sigma, generator)


@dataclass(frozen=True)
class Size:
    """The size of the problem and of the grid."""

    blobs: int
    samples: int
    dimension: int
    hidden: int
    decays: tuple[float, ...]
    sigmas: tuple[float, ...]
    seeds: tuple[int, ...]
    iterations: int

    def asked(self, request: Request) -> Size:
        """With the decays, seeds and iterations (``epochs``) of ``request`` where it names any."""
        return replace(
            self,
            decays=request.decays or self.decays,
            seeds=request.seeds or self.seeds,
            iterations=request.epochs or self.iterations,
        )

    def cells(self) -> list[Cell]:
        return [
            Cell(decay, sigma, seed, self.blobs, self.samples, self.dimension, self.hidden, self.iterations)
            for seed in self.seeds
            for sigma in self.sigmas
            for decay in self.decays
        ]
