"""Where the samples of a batch lie in what layers give, whatever the order of the axes."""

import pytest
import torch
from torch import Tensor, nn

from rankfold.observe.passes import Apart, Place, apart


class Ordered(nn.Module):
    """One layer over the positions of every sample, which lie as ``order`` says."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.a = order, nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        size, length, _ = x.shape
        if self.order == "samples first":
            return self.a(x).mean(1)
        if self.order == "positions first":
            return self.a(x.transpose(0, 1)).mean(0)
        if self.order == "rows of one sample together":
            return self.a(x.flatten(0, 1)).unflatten(0, (size, length)).mean(1)
        return self.a(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (length, size)).mean(0)


@pytest.mark.parametrize("length", [4, 7, 8, 16])  # also as many positions as samples
@pytest.mark.parametrize(
    ("order", "place"),
    [
        ("samples first", Place(0)),
        ("positions first", Place(1)),
        ("rows of one sample together", Place(0)),
        ("rows of one position together", Place(0, inner=True)),
    ],
)
def test_the_axis_of_samples_is_found(order: str, place: Place, length: int) -> None:
    torch.manual_seed(0)
    net = Ordered(order).eval()
    x = torch.randn(16, length, 5)
    told = apart(net, x, {"a": net.a})
    assert told == Apart(True, {"a": place})
    seen: list[Tensor] = []
    net.a.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    net(x)
    blocks = place.blocks(seen[0].shape, 16)
    per_sample = seen[0].reshape(blocks, 16, -1, 4).transpose(0, 1).reshape(16, length, 4)
    torch.testing.assert_close(per_sample, nn.functional.linear(x, net.a.weight, net.a.bias))


def test_what_is_computed_once_for_all_samples_has_no_place() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) + self.a(torch.ones(8, 5)).mean(0)

    net = Once().eval()
    assert apart(net, torch.randn(8, 5), {"a": net.a, "b": net.b}) == Apart(True, {"b": Place(0)})


def test_outputs_that_depend_on_the_other_samples_are_not_apart() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) - self.a(x).mean(0)

    net = Mixed().eval()
    assert apart(net, torch.randn(8, 5), {"a": net.a}) == Apart(False, {"a": Place(0)})
