"""Jobs that are killed at any moment, in processes of their own; nothing here is a test.

What they work with is imported here, once for all of them: in each it would take longer than the job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

import rankfold as rf
import rankfold.report.plots
from rankfold import hub  # noqa: F401
from rankfold.pipeline import Settings, compress

for _name in rf.__all__:
    getattr(rf, _name)


class Data:
    def __init__(self) -> None:
        x = torch.randn(1024, 16, generator=torch.Generator().manual_seed(0))
        parts = [TensorDataset(part, torch.arange(len(part)) % 4) for part in x.split((768, 128, 128))]
        self.train, self.validation, self.test = parts


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 4)
        ).eval()  # fmt: skip


def compressing(place: Path) -> nn.Module:
    settings = Settings(curve=False, samples=256, finetune=3)
    return compress(network(), Data(), "params=0.5", settings=settings, directory=place).model


def fitting(place: Path) -> nn.Module:
    settings = Settings(curve=False, samples=256, method="sequential", slices=False)
    return compress(network(), Data(), "params=0.5", settings=settings, directory=place).model


def training(place: Path) -> nn.Module:
    model, data = network(), Data()
    rf.fit(model, data.train, data.validation, rf.Recipe(epochs=6, batch_size=32, learning_rate=0.01), directory=place)
    return model


def saving(place: Path) -> nn.Module:
    """One good network after another into the same directory."""
    model, data = network(), torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    known = rf.profile(model, data)
    for budget in ("params=0.6", "params=0.5") * 10:
        plan = known.plan(budget)
        small = rf.apply_(network(), plan, known)
        rf.save(small, plan, place, bottlenecks=rf.bottlenecks(small, data) if budget.endswith("5") else None)
    return small


def quantising(place: Path) -> nn.Module:
    settings = Settings(curve=False, samples=256, forms="all")
    return compress(network(), Data(), "bytes=0.4", settings=settings, directory=place).model


def decoder(place: Path, blocks: int = 2) -> Path:
    """A folder of transformers that is streamed, with its weights in several shards; made once."""
    if not (place / "config.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(
                vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=blocks, num_attention_heads=2,
                num_key_value_heads=1, initializer_range=0.2, tie_word_embeddings=True,
            )).save_pretrained(place, max_shard_size="8KB")  # fmt: skip
    return place


WORDS = 20


def sequences(samples: int, seed: int) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(WORDS, (samples, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": part} for part in ids.split(4)]


def streaming(place: Path, tell: Any = None) -> nn.Module:
    """A folder block by block, in several forms; the original lies beside ``place``."""
    data = (sequences(16, 0), sequences(4, 1), sequences(4, 2))
    settings = Settings(method="sequential", forms="int8,factored")
    dense = decoder(place.parent / "dense")
    rf.stream(dense, data, "bytes=0.7", place, memory=260_000_000, settings=settings, tell=tell)
    return rf.load(place).model


JOBS = {job.__name__: job for job in (compressing, fitting, training, saving, quantising, streaming)}


def run(name: str, place: str) -> None:
    torch.set_num_threads(1)
    JOBS[name](Path(place))
