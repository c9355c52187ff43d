"""Laws that every site and every method obeys, for whoever adds one: each check raises ``AssertionError`` in words.

check_site(sites(model)["encoder.0"], model, example)
check_method(MyMethod(), nn.Conv2d(4, 8, 3), torch.randn(32, 4, 9, 9))
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from rankfold.compress.methods.method import Decomposition, Method
from rankfold.compress.statistics import calibrate
from rankfold.costs import Example, evaluating
from rankfold.forms.tucker import TUCKER
from rankfold.observe import before, first_of
from rankfold.sites import Call, Factors, Form, Site, sites, split_attention, unwrap

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def check_site(site: Site, model: nn.Module, example: Any) -> None:
    """Every form of ``site`` against the dense layer, on what reaches it when ``model`` runs on ``example``.

    Reading a matrix and putting it back changes nothing; a layer written with factors computes what the dense layer
    computes with the product of the factors, has that product as its ``weight``, the parameters and FLOPs that the
    site counts, a state dict that restores it, and gradients for every parameter. Ranks tried: 1, the middle, the
    largest. The model is left as found. Raises ``AssertionError`` naming the site, the form and the rank.
    """
    generator = torch.Generator().manual_seed(0)
    root, example = unwrap(model), Example.of(example)
    with split_attention(root):
        layer = root.get_submodule(site.name)
        calls = _calls(root, layer, example)
        _expect(bool(calls), f"{site.title}: never called on the example")
        for form in sorted(site.forms - {Form.KEEP}):
            _check_round_trip(site, form, layer, generator)
            top = site.max_rank(form)
            for rank in sorted({1, (top + 1) // 2, top}):
                _check_form(site, form, rank, layer, calls[0], generator)


def check_method(
    method: Method, layer: nn.Module, inputs: Tensor, *, exact: bool = True, tolerance: float = 1e-6
) -> None:
    """``method`` on one layer, in float64, at every rank it offers, in every form that both know.

    The errors it reports never rise with the rank, and the relative ones are what is measured, to ``tolerance``: of the
    layer's output on ``inputs`` (batch first) for a method with data, of its weight for one without. With
    ``exact=False`` the method reports an upper bound. The factors fit the layer, the answer is the same each time, and
    neither weight nor statistics change. Raises ``AssertionError`` naming the site, the form and the rank.
    """
    model = nn.Sequential(copy.deepcopy(layer).double()).eval()
    inputs = inputs.double()
    found = sites(model)
    _expect(len(found) == 1, f"not one site: {found.left_out}")
    site = found[0]
    statistics = calibrate(model, [inputs], found, samples=None).sites[site.name] if method.needs_data else None
    weight, bias = site.weight(model), site.bias(model)
    before, offered = weight.clone(), 0
    for form in sorted(method.forms & site.forms - {Form.DENSE}):
        where = f"{method.name}, {site.title}, {form}"
        decomposition = method.decompose(site, form, weight, statistics, bias)
        again = method.decompose(site, form, weight, statistics, bias)
        if decomposition is None or again is None:
            _expect(decomposition is again, f"{where}: offered only now and then")
            continue
        offered += 1
        _check_shape(where, decomposition)
        _expect(torch.equal(decomposition.errors, again.errors), f"{where}: other errors at the second call")
        for rank in decomposition.ranks:
            factors = decomposition.factors(rank)
            _expect(_same(factors, again.factors(rank)), f"{where}: other factors at the second call, rank {rank}")
            new = _built(site, form, rank, model[0], factors)
            promised = decomposition.relative_error(rank)
            measured = (
                _output_error(site, new, model[0], inputs) if method.needs_data else _weight_error(site, new, weight)
            )
            what = f"{where}: rank {rank} promises a relative error of {promised:.9f}, measured {measured:.9f}"
            _expect(measured <= promised + tolerance, what)
            _expect(not exact or measured >= promised - tolerance, what)
        _expect(torch.equal(before, site.weight(model)), f"{where}: the weight was changed")
    _expect(offered > 0, f"{method.name} offers nothing for {site.title}")


def _output_error(site: Site, new: nn.Module, layer: nn.Module, inputs: Tensor) -> float:
    """Error of the output, divided by the norm of the centred output."""
    with torch.no_grad():
        dense = layer(inputs)
        rows = site.layer.output_rows(dense)
        return float((new(inputs) - dense).norm() / (rows - rows.mean(-2, keepdim=True)).norm())


def _weight_error(site: Site, new: nn.Module, weight: Tensor) -> float:
    return float((_weight(new) - weight).norm() / weight.norm())


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    _expect(isinstance(weight, Tensor), f"{type(layer).__name__}.weight is no tensor")
    return weight.detach()  # type: ignore[operator]


def _same(a: Factors, b: Factors) -> bool:
    shifts = a.shift is b.shift or (a.shift is not None and b.shift is not None and torch.equal(a.shift, b.shift))
    return shifts and all(torch.equal(x, y) for x, y in zip(a.parts, b.parts, strict=True))


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def _calls(root: nn.Module, layer: nn.Module, example: Example) -> list[Tensor]:
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(first_of(args, kwargs).detach().clone())

    with evaluating(root), before(root, {layer: hook}):
        root(*example.args, **example.kwargs)
    return seen


def _check_round_trip(site: Site, form: Form, layer: nn.Module, generator: torch.Generator) -> None:
    weight = _weight(layer)
    geometry = site.layer.geometry(form)
    matrix = geometry.matrix(weight)
    where = f"{site.title}, {form}"
    _expect(torch.equal(geometry.put(weight, matrix), weight), f"{where}: put(matrix(w)) is not w")
    _expect(geometry.put(weight, matrix).data_ptr() != weight.data_ptr(), f"{where}: put gives the parameter itself")
    other = torch.randn(matrix.shape, generator=generator).to(matrix)
    _expect(torch.equal(geometry.matrix(geometry.put(weight, other)), other), f"{where}: matrix(put(a)) is not a")
    if form in (Form.FACTORED, Form.DENSE):
        expected = site.shape if site.groups == 1 else (site.groups, *site.shape)
        _expect(tuple(matrix.shape) == expected, f"{where}: the matrix is {tuple(matrix.shape)}, not {expected}")


def _check_form(
    site: Site, form: Form, rank: int, layer: nn.Module, inputs: Tensor, generator: torch.Generator
) -> None:
    where = f"{site.title}, {form} at rank {rank}"
    weight = _weight(layer)
    tolerance = _TOLERANCE[weight.dtype]
    factors, product = _random_factors(site, form, rank, weight, generator)
    new = _built(site, form, rank, layer, factors)
    _expect(all(p.dtype == weight.dtype for p in new.parameters()), f"{where}: another dtype")
    shown = product
    if form is Form.DENSE and weight.dim() == 2:  # an ordinary linear layer, also where the original stores (n, m)
        shown = site.layer.geometry(form).matrix(product)
    _expect(_near(_weight(new), shown, tolerance), f"{where}: weight is not the product of the factors")
    with torch.no_grad():
        dense = functional_call(layer, {"weight": product.to(weight.dtype)}, (inputs,))
    output = new(inputs)
    _expect(output.shape == dense.shape, f"{where}: output {tuple(output.shape)}, dense {tuple(dense.shape)}")
    _expect(_near(output, dense, tolerance), f"{where}: output is not that of the multiplied-out layer")

    call = Call(tuple(inputs.shape), tuple(dense.shape))
    for bias in (True, False):
        empty = site.layer.skeleton(layer, form, rank, bias).to("meta")
        held, counted = sum(p.numel() for p in empty.parameters()), site.layer.params(form, rank, bias)
        _expect(held == counted, f"{where}: {counted} parameters counted, the layer has {held}")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            empty(inputs.to("meta"))
        flops = site.layer.flops(form, rank, [call])
        _expect(
            flops == counter.get_total_flops(),
            f"{where}: {flops} FLOPs counted, the layer takes {counter.get_total_flops()}",
        )

    twin = site.layer.skeleton(layer, form, rank, site.layer.has_bias)
    twin.load_state_dict(new.state_dict())
    _expect(torch.equal(twin(inputs), output), f"{where}: the state dict does not restore the layer")
    with torch.enable_grad():
        new.requires_grad_(True)
        new(inputs).float().square().sum().backward()
    without = [name for name, p in new.named_parameters() if p.grad is None or not bool(p.grad.any())]
    _expect(not without, f"{where}: no gradient reaches {', '.join(without)}")


def _built(site: Site, form: Form, rank: int, layer: nn.Module, factors: Factors) -> nn.Module:
    """The layer in its new form, filled; ``shift`` and the old bias in its bias."""
    carries = site.layer.has_bias or factors.shift is not None
    new = site.layer.skeleton(layer, form, rank, carries).eval()
    site.layer.write_(new, form, factors)
    with torch.no_grad():
        if carries:
            bias: Tensor = new.bias  # type: ignore[assignment]
            bias.zero_()
            if site.layer.has_bias:
                bias += layer.bias  # type: ignore[arg-type]
            if factors.shift is not None:
                bias += factors.shift.to(bias)
    return new


def _random_factors(
    site: Site, form: Form, rank: int, weight: Tensor, generator: torch.Generator
) -> tuple[Factors, Tensor]:
    """Factors with random entries, and the dense parameter that they stand for."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.dtype).double()

    geometry = site.layer.geometry(form)
    if form in (Form.TUCKER, Form.CP):
        c_out, c_in, *kernel = weight.shape
        if form is Form.TUCKER:
            r_out, r_in = TUCKER.ranks_of(site.layer, rank)
            down, core, up = draw(r_in, c_in), draw(r_out, r_in, *kernel), draw(c_out, r_out)
            return Factors((down, core, up)), torch.einsum("op,pq...,qc->oc...", up, core, down)
        down, up = draw(rank, c_in), draw(c_out, rank)
        lines = [draw(rank, length) for length in kernel]
        letters = "xyz"[: len(kernel)]
        rule = "or,rc," + ",".join(f"r{x}" for x in letters) + f"->oc{letters}"
        return Factors((down, *lines, up)), torch.einsum(rule, up, down, *lines)
    *groups, m, n = geometry.matrix(weight).shape
    right, left = draw(*groups, rank, n), draw(*groups, m, rank)
    product = geometry.put(weight, left @ right)
    return (Factors((left @ right,)) if form is Form.DENSE else Factors((right, left))), product


def _check_shape(where: str, decomposition: Decomposition) -> None:
    errors, levels, ranks = decomposition.errors, decomposition.levels, list(decomposition.ranks)
    _expect(errors.dtype == torch.float64 and errors.dim() == 1, f"{where}: errors must be (k + 1,) float64")
    _expect(bool(errors.isfinite().all()) and bool((errors >= 0).all()), f"{where}: an error is negative or not finite")
    _expect(bool((errors.diff() <= 1e-12 * errors[0]).all()), f"{where}: the error rises with the rank")
    _expect(tuple(levels.shape) == (len(errors) - 1,), f"{where}: levels must be (k,), one for each rank from 1")
    _expect(bool(((levels >= 0) & (levels <= 1 + 1e-12)).all()), f"{where}: a level is outside [0, 1]")
    _expect(ranks == sorted(set(ranks)) and bool(ranks), f"{where}: ranks must ascend")
    _expect(ranks[0] >= 1 and ranks[-1] < len(errors), f"{where}: ranks reach beyond the errors")


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    a, b = a.detach().double(), b.detach().double()
    return a.shape == b.shape and bool((a - b).norm() <= tolerance * b.norm().clamp_min(1e-12))
