"""Laws of sites, forms and readers of layer types."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from rankfold.costs import Example, evaluating
from rankfold.forms.tucker import TUCKER
from rankfold.layers.rounded import numbers_of
from rankfold.observe import before, first_of
from rankfold.run.ordinary import ordinarily
from rankfold.sites import Call, Factors, Form, Layer, Site, opened, sites, unwrap
from rankfold.testing.expect import expect, near
from rankfold.testing.fill import filled

_ROUNDED = 0.03  # of the norm: what a form may lose that rounds the factors it is given
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@ordinarily
def check_form(form: Form, layer: nn.Module, inputs: Tensor) -> None:
    """The laws of ``check_site`` for one form, registered or not, of one layer.

    Args:
        form: to be checked.
        layer: for which it is offered.
        inputs: a batch that the layer takes.

    Raises:
        AssertionError: the form is not offered for this layer, and as ``check_site``.

    Example:
        >>> from rankfold.testing import check_form
        >>> check_form(rf.Form.FACTORED, nn.Linear(6, 5), torch.randn(3, 6))
    """
    model = nn.Sequential(layer)
    found = sites(model)
    expect(len(found) == 1, f"not one site: {found.left_out}")
    expect(form.offered(found[0].layer), f"form {form} is not offered for {found[0].title}")
    check_site(replace(found[0], forms=frozenset({Form.KEEP, form})), model, inputs)


@ordinarily
def check_reader(reader: Any, module: nn.Module, inputs: Tensor) -> None:
    """A reader of layer types, on one module that it knows and a batch that the module takes.

    It knows no other module; the layer object that it gives says truly how large the matrix is and whether there is a
    bias, and the module's output is the product of its rows with the matrix; then the laws of ``check_site`` for every
    form offered.

    Args:
        reader: to be checked.
        module: that it knows.
        inputs: a batch that the module takes.

    Raises:
        AssertionError: in words.

    Example:
        >>> from rankfold.sites.kinds.linear import read_linear
        >>> rf.testing.check_reader(read_linear, nn.Linear(6, 5), torch.randn(3, 6))
    """
    name = type(module).__name__
    expect(reader(nn.Identity()) is None, f"the reader takes an Identity for a {name}")
    layer = reader(module)
    expect(isinstance(layer, Layer), f"a layer object for {name} was expected, got {type(layer).__name__}")
    weight, (m, n), groups = layer.weight(module), layer.shape, layer.groups
    expect(isinstance(weight, Tensor), f"{name}: weight(module) gives {type(weight).__name__}, not a tensor")
    expect(weight.numel() == groups * m * n, f"{name}: a matrix {m}×{n} of {weight.numel()} numbers, {groups} groups")
    bias = getattr(module, "bias", None)
    expect(layer.has_bias == (bias is not None), f"{name}: has_bias is {layer.has_bias}, and bias is {bias!r}")
    with torch.no_grad():
        output = module(inputs)
    pair = layer.paired_rows(module, inputs, output)
    if pair is not None:
        product = pair[0] @ layer.matricization.matrix(weight.detach()).mT
        product = product if bias is None else product + bias.detach().reshape(*product.shape[:-2], 1, m)
        expect(near(product, pair[1], _TOLERANCE[weight.dtype]), f"{name}: the output is not rows · matrixᵀ + bias")
    side = layer.rows(module, inputs, output).shape[-1]
    expect(side == (m if layer.side == "output" else n), f"{name}: rows of {side} numbers at side {layer.side}")
    parameter = f"0.{layer.parameter}"
    check_site(Site("0", parameter, layer, layer.forms), nn.Sequential(module), inputs)


@ordinarily
def check_site(site: Site, model: nn.Module, example: Any) -> None:
    """Every form of ``site`` against the dense layer, on what reaches it when ``model`` runs on ``example``.

    Reading a matrix and putting it back changes nothing; a layer written with factors computes what the dense layer
    computes with the product of the factors, has that product as its ``weight``, the parameters, bytes and FLOPs that
    the site counts, a state dict that restores it, and gradients for every parameter; a cast leaves whole numbers as
    they are, and under autocast the output has the dtype that the dense layer gives. What a form rounds is near to the
    product, and the layer computes with what it rounded to. Ranks tried: the smallest, 1, the middle, the largest. The
    model is left as found.

    Args:
        site: of the model.
        model: any module.
        example: one batch.

    Raises:
        AssertionError: naming the site, the form and the rank.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 5))
        >>> rf.testing.check_site(rf.sites(net)["0"], net, torch.randn(3, 6))
    """
    generator = torch.Generator().manual_seed(0)
    root, example = unwrap(model), Example.of(example)
    with opened(root):
        layer = root.get_submodule(site.name)
        calls = _calls(root, layer, example)
        expect(bool(calls), f"{site.title}: never called on the example")
        for form in sorted(site.forms - {Form.KEEP}):
            _check_round_trip(site, form, layer, generator)
            top = site.max_rank(form)
            for rank in sorted({form.least, 1, (top + 1) // 2, top}):
                _check_form(site, form, rank, layer, calls[-1], generator)  # a recurrent layer begins with zeros


def _weight(layer: Any) -> Tensor:
    weight = layer.weight
    expect(isinstance(weight, Tensor), f"{type(layer).__name__}.weight is no tensor")
    return weight.detach()


def _calls(root: nn.Module, layer: nn.Module, example: Example) -> list[Tensor]:
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(first_of(args, kwargs).detach().clone())

    with evaluating(root), before(root, {layer: hook}):
        root(*example.args, **example.kwargs)
    return seen


def _check_round_trip(site: Site, form: Form, layer: nn.Module, generator: torch.Generator) -> None:
    weight = site.layer.weight(layer).detach()
    geometry = site.layer.geometry(form)
    matrix = geometry.matrix(weight)
    where = f"{site.title}, {form}"
    expect(torch.equal(geometry.put(weight, matrix), weight), f"{where}: put(matrix(w)) is not w")
    expect(geometry.put(weight, matrix).data_ptr() != weight.data_ptr(), f"{where}: put gives the parameter itself")
    other = torch.randn(matrix.shape, generator=generator).to(matrix)
    expect(torch.equal(geometry.matrix(geometry.put(weight, other)), other), f"{where}: matrix(put(a)) is not a")
    if form.decomposed in (Form.FACTORED, Form.DENSE):
        expected = site.shape if site.groups == 1 else (site.groups, *site.shape)
        expect(tuple(matrix.shape) == expected, f"{where}: the matrix is {tuple(matrix.shape)}, not {expected}")


def _check_form(
    site: Site, form: Form, rank: int, layer: nn.Module, inputs: Tensor, generator: torch.Generator
) -> None:
    where = f"{site.title}, {form} at rank {rank}"
    weight = site.layer.weight(layer).detach()
    tolerance = _TOLERANCE[weight.dtype]
    factors, product = _random_factors(site, form, rank, weight, generator)
    new = filled(site, form, rank, layer, factors)
    floating = (x for x in (*new.parameters(), *new.buffers()) if x.is_floating_point())
    expect(all(x.dtype == weight.dtype for x in floating), f"{where}: another dtype")
    if not form.exact:
        near_to = max(_ROUNDED, tolerance)
        expect(near(_weight(new), product, near_to), f"{where}: weight is not near to the product of the factors")
        product = _weight(new).clone()
    shown = product
    if form is Form.DENSE and weight.dim() == 2:  # an ordinary linear layer, also where the original stores (n, m)
        shown = site.layer.geometry(form).matrix(product)
    expect(near(_weight(new), shown, tolerance), f"{where}: weight is not the product of the factors")
    with torch.no_grad():
        dense = functional_call(layer, {site.layer.parameter: product.to(weight.dtype)}, (inputs,))
    output = new(inputs)
    expect(output.shape == dense.shape, f"{where}: output {tuple(output.shape)}, dense {tuple(dense.shape)}")
    expect(near(output, dense, tolerance), f"{where}: output is not that of the multiplied-out layer")

    call = Call(tuple(inputs.shape), tuple(dense.shape))
    for bias in (True, False):
        empty = site.layer.skeleton(layer, form, rank, bias).to("meta")
        stored = sum(x.numel() * x.element_size() for x in (*empty.parameters(), *empty.buffers()))
        said = form.bytes(site.layer, rank, bias, weight.element_size())
        expect(stored == said, f"{where}: {said} bytes counted, the layer has {stored}")
        held, counted = numbers_of(empty), site.layer.params(form, rank, bias)
        expect(held == counted, f"{where}: {counted} parameters counted, the layer has {held}")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            empty(inputs.to("meta"))
        flops = site.layer.flops(form, rank, [call])
        expect(
            flops == counter.get_total_flops(),
            f"{where}: {flops} FLOPs counted, the layer takes {counter.get_total_flops()}",
        )

    expect(form.parameter in new.state_dict(), f"{where}: no parameter {form.parameter!r}, by which it is known")
    twin = site.layer.skeleton(layer, form, rank, site.layer.has_bias)
    twin.load_state_dict(new.state_dict())
    expect(torch.equal(twin(inputs), output), f"{where}: the state dict does not restore the layer")
    _check_cast(new, where)
    _check_autocast(layer, new, inputs, where)
    trained = {name: p for name, p in new.requires_grad_(True).named_parameters() if p.numel()}
    if not trained:
        return
    with torch.enable_grad():
        new(inputs).float().square().sum().backward()
    without = [name for name, p in trained.items() if p.grad is None or not bool(p.grad.any())]
    expect(not without, f"{where}: no gradient reaches {', '.join(without)}")


def _check_autocast(dense: nn.Module, new: nn.Module, inputs: Tensor, where: str) -> None:
    """What follows the layer meets the precision that the dense layer hands on."""
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16):
        given, wanted = (copy.deepcopy(each).float()(inputs).dtype for each in (new, dense))
    expect(given == wanted, f"{where}: under autocast its output is {given}, that of the dense layer {wanted}")


def _check_cast(layer: nn.Module, where: str) -> None:
    """Whole numbers stay what they are in a model of another precision."""
    whole = {name: x for name, x in layer.named_buffers() if not x.is_floating_point()}
    cast = copy.deepcopy(layer).to(torch.float16)
    changed = [name for name, x in whole.items() if not torch.equal(x, cast.get_buffer(name))]
    expect(not changed, f"{where}: a cast changes the whole numbers {', '.join(changed)}")


def _random_factors(
    site: Site, form: Form, rank: int, weight: Tensor, generator: torch.Generator
) -> tuple[Factors, Tensor]:
    """Factors with random entries, and the dense parameter that they stand for."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.dtype).double()

    geometry = site.layer.geometry(form)
    if form.decomposed in (Form.TUCKER, Form.CP):
        c_out, c_in, *kernel = weight.shape
        if form.decomposed is Form.TUCKER:
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
    if form.over_base:
        base = form.base(geometry.matrix(weight), weight.dtype)
        return Factors((right, left, *base)), geometry.put(weight.double(), left @ right + form.based(base))
    product = geometry.put(weight, left @ right)
    return (Factors((left @ right,)) if form is Form.DENSE else Factors((right, left))), product
