"""What a layer gives, and whether it matters to what the model gives."""

from __future__ import annotations

import pytest
import torch
from networks import network
from torch import Tensor, nn

import rankfold as rf
from rankfold.observe import unheard

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class Ways(nn.Module):
    """Layers whose outputs reach the answer by gradients, by values alone, or not at all."""

    def __init__(self, quiet: bool = False) -> None:
        super().__init__()
        for name in ("first", "aside", "never", "detached", "choosing", "head"):
            setattr(self, name, nn.Linear(16, 16))
        self.quiet, self.seen = quiet, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(self.quiet):
            hidden = torch.relu(self.first(x))
            self.seen = self.aside(hidden)
            hidden = hidden + self.detached(hidden).detach()
            hidden = hidden + 0.1 * self.choosing(hidden).argmax(1, keepdim=True)
            return self.head(hidden)


@pytest.mark.parametrize("quiet", [False, True])
def test_only_what_changes_nothing_is_unheard(quiet):
    model = Ways(quiet).eval()
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert unheard(lambda: model(X), modules) == ["aside"]
    assert not any(module._forward_hooks for module in modules.values())


def test_parts_of_an_output_are_heard():
    model = Ways().eval()
    modules = {"aside": model.aside, "head": model.head}
    assert unheard(lambda: {"answer": model(X), "hidden": (model.seen,)}, modules) == []
    assert unheard(lambda: model(X).argmax(1), modules) == ["aside"]


@pytest.mark.parametrize("method", ["truncate", "project", "sequential", "nuclear"])
def test_a_layer_that_is_not_heard_has_no_part_in_a_budget(method):
    plan = rf.plan(Ways().eval(), "params=0.7", method, X)
    entries = {entry.site: entry for entry in plan.entries}
    assert entries["aside"].form is rf.Form.KEEP
    assert "never reaches the outputs of the model" in entries["aside"].note
    assert not any("never reaches" in entry.note for name, entry in entries.items() if name != "aside")


def test_the_pooler_of_an_encoder_whose_tokens_are_averaged():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = network("bert_without_head")[0]

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.bert(input_ids).last_hidden_state.mean(1)

    _, batch = network("bert_without_head")
    plan = rf.plan(Mean().eval(), "params=0.8", "truncate", [{"input_ids": batch["input_ids"]}])
    pooler = next(entry for entry in plan.entries if "pooler" in entry.site)
    assert pooler.form is rf.Form.KEEP
    assert "never reaches" in pooler.note
    own = rf.plan(network("bert_without_head")[0], "params=0.8", "truncate", [batch])  # who takes all outputs sees it
    assert not any("never reaches" in entry.note for entry in own.entries)
