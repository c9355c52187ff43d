"""Laws of methods."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rankfold.compress.methods.method import Decomposition, Method
from rankfold.compress.statistics import calibrate
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Factors, Form, Site, sites
from rankfold.testing.expect import expect
from rankfold.testing.fill import filled


@ordinarily
def check_method(
    method: Method, layer: nn.Module, inputs: Tensor, *, exact: bool = True, tolerance: float = 1e-6
) -> None:
    """``method`` on one layer, in float64, at every rank it offers, in every form that both know.

    The errors it reports never rise with the rank, and the relative ones are what is measured: of the layer's output on
    ``inputs`` for a method with data, of its weight for one without. The factors fit the layer, the answer is the same
    each time, and neither weight nor statistics change.

    Args:
        method: to be checked.
        layer: that it factors.
        inputs: batch first.
        exact: False: the method reports an upper bound.
        tolerance: of the relative errors.

    Raises:
        AssertionError: naming the site, the form and the rank.

    Example:
        >>> from rankfold.compress.methods.truncate import Truncate
        >>> rf.testing.check_method(Truncate(), nn.Linear(6, 5), torch.randn(16, 6))
    """
    model = nn.Sequential(copy.deepcopy(layer).double()).eval()
    inputs = inputs.double()
    found = sites(model)
    expect(len(found) == 1, f"not one site: {found.left_out}")
    site = found[0]
    statistics = calibrate(model, [inputs], found, samples=None).sites[site.name] if method.needs_data else None
    weight, bias = site.weight(model), site.bias(model)
    before, offered = weight.clone(), 0
    for form in sorted(method.forms & site.forms - {Form.DENSE}):
        where = f"{method.name}, {site.title}, {form}"
        decomposition = method.decompose(site, form, weight, statistics, bias)
        again = method.decompose(site, form, weight, statistics, bias)
        if decomposition is None or again is None:
            expect(decomposition is again, f"{where}: offered only now and then")
            continue
        offered += 1
        _check_shape(where, decomposition)
        expect(torch.equal(decomposition.errors, again.errors), f"{where}: other errors at the second call")
        for rank in decomposition.ranks:
            factors = decomposition.factors(rank)
            expect(_same(factors, again.factors(rank)), f"{where}: other factors at the second call, rank {rank}")
            new = filled(site, form, rank, model[0], factors)
            promised = decomposition.relative_error(rank)
            measured = (
                _output_error(site, new, model[0], inputs) if method.needs_data else _weight_error(site, new, weight)
            )
            what = f"{where}: rank {rank} promises a relative error of {promised:.9f}, measured {measured:.9f}"
            expect(measured <= promised + tolerance, what)
            expect(not exact or measured >= promised - tolerance, what)
        expect(torch.equal(before, site.weight(model)), f"{where}: the weight was changed")
    expect(offered > 0, f"{method.name} offers nothing for {site.title}")


def _output_error(site: Site, new: nn.Module, layer: nn.Module, inputs: Tensor) -> float:
    """Error of the output, divided by the norm of the centred output."""
    with torch.no_grad():
        dense, given = layer(inputs), new(inputs)
        # a convolution whose inputs are gathered is calibrated on some of its patches: there its output is compared
        pairs = site.layer.paired_rows(layer, inputs, dense, given) if site.layer.side == "input" else None
        rows, found = map(site.layer.output_rows, (dense, given)) if pairs is None else pairs[1:]
        return float((found - rows).norm() / (rows - rows.mean(-2, keepdim=True)).norm())


def _weight_error(site: Site, new: nn.Module, weight: Tensor) -> float:
    held: Any = new.weight
    return float((held.detach() - weight).norm() / weight.norm())


def _same(a: Factors, b: Factors) -> bool:
    shifts = a.shift is b.shift or (a.shift is not None and b.shift is not None and torch.equal(a.shift, b.shift))
    return shifts and all(torch.equal(x, y) for x, y in zip(a.parts, b.parts, strict=True))


def _check_shape(where: str, decomposition: Decomposition) -> None:
    errors, levels, ranks = decomposition.errors, decomposition.levels, list(decomposition.ranks)
    expect(errors.dtype == torch.float64 and errors.dim() == 1, f"{where}: errors must be (k + 1,) float64")
    expect(bool(errors.isfinite().all()) and bool((errors >= 0).all()), f"{where}: an error is negative or not finite")
    expect(bool((errors.diff() <= 1e-12 * errors[0]).all()), f"{where}: the error rises with the rank")
    expect(tuple(levels.shape) == (len(errors) - 1,), f"{where}: levels must be (k,), one for each rank from 1")
    expect(bool(((levels >= 0) & (levels <= 1 + 1e-12)).all()), f"{where}: a level is outside [0, 1]")
    expect(ranks == sorted(set(ranks)) and bool(ranks), f"{where}: ranks must ascend")
    expect(ranks[0] >= 1 and ranks[-1] < len(errors), f"{where}: ranks reach beyond the errors")
