"""Layers of a class of their own: sites where they do what torch's class does, left out where they do anything else."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rankfold as rf
from rankfold.layers import LowRankConv, LowRankLinear
from rankfold.sites import sites


class Casts(nn.Linear):
    """As speech models write it: weights in the dtype of what comes in."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Written(nn.Linear):
    """As language models write it: two operations in place of one."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        made = input @ self.weight.T
        return made if self.bias is None else made + self.bias


class CastsConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class CallsUp(nn.ConvTranspose1d):
    def forward(self, x, output_size=None):
        return super().forward(x, output_size)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Noisy(nn.Linear):
    def forward(self, x):
        return F.linear(F.dropout(x, 0.5, self.training), self.weight, self.bias)


class WithScale(nn.Linear):
    def __init__(self, *size):
        super().__init__(*size)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return super().forward(x) * self.scale


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), None


class Breaks(nn.Linear):
    def forward(self, x, more):
        return super().forward(x) + more


class Wide(nn.Linear):
    """The same for single rows alone."""

    def forward(self, x):
        return super().forward(x) if x.dim() == 2 else super().forward(x).cumsum(1)


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Same(nn.Conv2d):
    """As large as what comes in, whatever the stride."""

    def forward(self, x):
        return super().forward(F.pad(x, (1, 1, 1, 1)))


ALIKE = {
    "casts": lambda: Casts(9, 7), "no bias": lambda: Casts(9, 7, bias=False), "written": lambda: Written(9, 7),
    "half": lambda: Written(9, 7).half(), "bfloat16": lambda: Casts(9, 7).bfloat16(),
    "double": lambda: Written(9, 7).double(),
    "conv": lambda: CastsConv(4, 6, 3, padding="same"), "groups": lambda: CastsConv(8, 8, 3, 2, 1, groups=4),
    "circular": lambda: CastsConv(4, 6, 3, padding=1, padding_mode="circular", bias=False),
    "transposed": lambda: CallsUp(6, 8, 4, 2, groups=2),
}  # fmt: skip
OTHER = (Doubled, Noisy, WithScale, Pair, Breaks, Wide, Called)


@pytest.mark.parametrize("made", ALIKE.values(), ids=ALIKE)
def test_what_does_the_same_is_a_site(made):
    found = sites(nn.Sequential(made()))
    assert [site.name for site in found.reducible] == ["0"], found.left_out


@pytest.mark.parametrize("kind", OTHER, ids=lambda kind: kind.__name__)
def test_what_does_anything_else_is_left_out(kind):
    found = sites(nn.Sequential(kind(9, 7)))
    assert not found.items
    assert kind.__name__ in dict(found.left_out)["0.weight"]


def test_a_convolution_that_pads_for_itself_is_left_out():
    assert not sites(nn.Sequential(Same(4, 6, 3))).items


def test_the_layer_is_never_called_and_no_random_number_drawn():
    class Counts(nn.Linear):
        seen: list = []  # noqa: RUF012

        def forward(self, x):
            self.seen.append(id(self.weight))
            return super().forward(x)

    net, state = nn.Sequential(Counts(9, 7), Noisy(7, 7)), torch.get_rng_state()
    assert len(sites(net).items) == 1
    assert id(net[0].weight) not in Counts.seen
    assert torch.equal(torch.get_rng_state(), state)


class Notes(nn.Linear):
    """Keeps what it was given, and counts in place, and by a method of its own."""

    def __init__(self, *size):
        super().__init__(*size)
        self.seen, self.calls, self.note = [], torch.zeros(()), self._noted

    def _noted(self, x):
        self.seen.append(x)
        self.calls += 1

    def forward(self, x):
        self.note(x)
        return super().forward(x)


def test_what_a_layer_notes_of_its_calls_holds_none_of_the_trial():
    net = nn.Sequential(Notes(9, 7), Notes(7, 7))
    assert len(sites(net).items) == 2
    assert [(layer.seen, float(layer.calls)) for layer in net] == [([], 0)] * 2
    net[1].lock = threading.Lock()  # which cannot be copied
    assert [site.name for site in sites(net)] == ["0"]


def test_they_are_compressed_and_composed_like_ordinary_ones():
    torch.manual_seed(0)
    net = nn.Sequential(CastsConv(4, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), Written(16 * 25, 24)).eval()
    x = torch.randn(64, 4, 5, 5)
    plan = rf.plan(net, rf.Ranks({"0": 4, "3": 8}), data=x, forms=["factored"])
    small = rf.apply_(net, plan)
    assert isinstance(small[0], LowRankConv)
    assert isinstance(small[3], LowRankLinear)
    assert sum(p.numel() for p in small.parameters()) == plan.after.params

    torch.manual_seed(0)
    net = nn.Sequential(Written(8, 6), Casts(6, 4))
    y = net(x[:, :2, 0, :4].reshape(-1, 8))
    composed = rf.overparametrize_(net, depth=2)
    torch.testing.assert_close(composed(x[:, :2, 0, :4].reshape(-1, 8)), y)
    assert type(rf.fold_(composed)[0]) is Written
