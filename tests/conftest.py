"""Settings of the whole suite."""

import os

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
os.environ.setdefault("RANKFOLD_LATENCY", os.devnull)  # no times of a machine decide what a test sees
# thread pools of the operating system make single examples slow now and then; no test asserts a time
settings.register_profile("suite", deadline=None, max_examples=int(os.environ.get("RANKFOLD_EXAMPLES", "25")))
settings.load_profile("suite")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
