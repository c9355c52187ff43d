"""The label term of equations 6 and 7, and the constant of theorem 3.4 beside the chain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rankfold.collapse import Partition, chain, cross_entropy, measure_layers, squared_error
from rankfold.collapse.centroid import INPUT, Tail, centroids
from rankfold.collapse.curvature import bends
from rankfold.collapse.scatter import label_variation

seeds = st.integers(0, 2**31)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layer = nn.Linear(n, m).double()
        layer.weight.data = draw(m, n, seed=seed + len(layers)) / n**0.5
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=20), seed=seeds)
def test_the_variation_of_labels_is_the_definition(labels: list[int], seed: int) -> None:
    y = torch.tensor(labels)
    clusters = torch.randint(0, 3, (len(y),), generator=torch.Generator().manual_seed(seed))
    hot = nn.functional.one_hot(y, 4).double()
    plain = sum(float((hot[clusters == k] - hot[clusters == k].mean(0)).square().sum()) for k in clusters.unique())
    table = torch.zeros(3, 4).index_put_((clusters, y), torch.ones(len(y)), accumulate=True)
    assert label_variation(table) == pytest.approx(plain / len(y), abs=1e-12)


def test_clusters_of_mixed_classes_pay_for_their_labels_and_classes_pay_nothing() -> None:
    """Two classes in each of two places: k-means finds the places, where labels vary by 1 − 2·(1/2)² = 1/2."""
    place, y = torch.arange(40) % 2, (torch.arange(40) // 2) % 2
    inputs = 10.0 * place.unsqueeze(1) + 0.1 * draw(40, 3).float()
    layer = measure_layers(nn.Sequential(nn.Linear(3, 2)), [(inputs, y)], clusters=2)["0"]
    by_class, best = layer.classes["whole"], layer.best["whole"]
    assert by_class.labels == 0
    assert best.by == "k-means"
    assert best.labels == pytest.approx(0.5)
    assert best.variation == pytest.approx(best.wcss + 0.5)
    assert layer.tcv["whole"] == best.variation < by_class.variation
    assert layer.to_dict()["tcv"] == layer.tcv
    hardly = [(inputs / 100, y)]
    near = measure_layers(nn.Sequential(nn.Linear(3, 2)), hardly, clusters=2)["0"]
    assert near.tcv["whole"] == near.classes["whole"].variation < near.best["whole"].variation


def test_the_constant_of_one_layer_is_the_closed_form() -> None:
    """g = 2(Wz − y)zᵀ bends alike everywhere: D²g[δ, δ] = 4(Wδ_z − δ_y)δ_zᵀ."""
    x, y, w = draw(30, 5), draw(30, 4, seed=1), draw(4, 5, seed=2)
    model = nn.Linear(5, 4).double()
    model.weight.data = w
    partition = Partition.of(torch.arange(30) % 3)
    dz, dy = (each - centroids(each, partition)[partition.index] for each in (x, y))
    size = dz.square().sum(1) + dy.square().sum(1)
    wcss, found = bends(Tail(model, INPUT, x[:2]), x, y, partition, squared_error, [""])
    assert wcss == pytest.approx(float(size.mean()))
    assert found[""] == pytest.approx(float((2 * (dz @ w.mT - dy).norm(dim=1) * dz.norm(dim=1) / size).max()))


@settings(max_examples=8)
@given(seed=seeds, spread=st.floats(0.05, 2.0), entropy=st.booleans())
def test_the_constant_bounds_the_difference_of_gradients_at_any_parameters(
    seed: int, spread: float, entropy: bool
) -> None:
    index = torch.arange(24) % 3
    x = draw(3, 4, seed=seed)[index] + spread * draw(24, 4, seed=seed + 1)
    y = nn.functional.one_hot((index + torch.arange(24) // 12) % 3, 3).double()  # labels vary within clusters too
    model = network(seed, 4, 6, 5, 3)
    loss = cross_entropy if entropy else squared_error
    found = chain(model, x, y, Partition.of(index), 1e-2, loss, constants=True)
    assert [layer.name for layer in found.layers] == ["0", "2", "4"]
    for layer in found.layers:
        assert layer.promise is not None
        assert layer.promise.value == pytest.approx(layer.promise.constant * layer.promise.variation / 1e-2)
        assert layer.promise.difference <= layer.promise.value
        assert layer.gradient_part <= layer.promise.value + 1e-9 * layer.norm
    assert found.violations == 0
    low = replace(found.layers[1], promise=replace(found.layers[1].promise, value=0.0))
    assert not low.holds


def test_rows_of_a_convolution_are_put_together_by_sample() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3)).double()
    index = torch.arange(12) % 3
    x, y = draw(3, 1, 3, 3)[index] + 0.3 * draw(12, 1, 3, 3, seed=1), nn.functional.one_hot(index).double()
    tail, partition = Tail(model, INPUT, x[:2]), Partition.of(index)
    _, found = bends(tail, x, y, partition, cross_entropy, ["0", "2"], nodes=(0.0, 1.0))

    def gradient(i: int, s: float, name: str) -> Tensor:
        z, t = (centroids(each, partition)[index[i]] for each in (x, y))
        value = cross_entropy(model((z + s * (x[i] - z)).unsqueeze(0)), (t + s * (y[i] - t)).unsqueeze(0)).sum()
        return torch.autograd.grad(value, model.get_submodule(name).weight)[0]

    for name in ("0", "2"):
        plain = []
        for i in range(12):
            size = float((x[i] - centroids(x, partition)[index[i]]).square().sum())
            for s in (0.0, 1.0):
                bend = gradient(i, s - 1e-3, name) - 2 * gradient(i, s, name) + gradient(i, s + 1e-3, name)
                plain.append(0.5 * float(bend.norm()) / 1e-6 / size)
        assert found[name] == pytest.approx(max(plain), rel=1e-5)


def test_single_precision_is_refused() -> None:
    x, y = torch.randn(6, 4), nn.functional.one_hot(torch.arange(6) % 3).float()
    with pytest.raises(ValueError, match="float64"):
        chain(nn.Linear(4, 3), x, y, Partition.of(torch.arange(6) % 3), 1e-2, cross_entropy, constants=True)
