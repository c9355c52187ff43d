"""Which forms are weighed: those that were asked for by name, or all that need not be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankfold.compress.methods import METHODS
from rankfold.compress.methods.method import Method, fits_layers
from rankfold.sites import Form, Site, SiteList

EVERY = "all"
Forms = str | Sequence[str]


def asked_forms(forms: Forms | None) -> frozenset[Form] | None:
    """The forms of these names, or of one text with commas between them; None for None: all but the optional ones.

    ``ValueError`` for an unknown name, or none at all.
    """
    if forms is None:
        return None
    names = _names(forms)
    if EVERY in names:
        return frozenset(Form)
    found = frozenset(Form(name) for name in names if name)
    if not found - {Form.KEEP}:
        raise ValueError("forms= (--forms) names no form beside 'keep': name one, such as 'factored', or 'all'")
    return found


def named_forms(forms: Forms | None) -> frozenset[Form]:
    """The forms that were asked for by their own names, without 'keep'; none where any, or all, may be taken."""
    if forms is None or EVERY in _names(forms):
        return frozenset()
    return (asked_forms(forms) or frozenset()) - {Form.KEEP}


def _names(forms: Forms) -> list[str]:
    return [name.strip() for name in forms.split(",")] if isinstance(forms, str) else list(forms)


def chosen(found: SiteList, forms: Forms | None) -> SiteList:
    """``found``, in which each site has the forms that were asked for, and is observed as these need it.

    A form over a base is left out where a layer's inputs cannot be observed whole.
    """
    asked = asked_forms(forms)
    if asked is None:
        return found
    return replace(found, items=tuple(_chosen(site, asked) for site in found))


def check_fitting(method: Method, forms: Forms | None) -> None:
    """``ValueError`` where ``method`` makes none of the forms that were asked for by name, and for a form over a base
    beside a method that fits its factors layer after layer."""
    asked = named_forms(forms)
    over = sorted(form for form in asked if form.over_base)
    if over and fits_layers(method):
        raise ValueError(
            f"method {method.name!r}, which fits one layer after another, does not make the form '{over[0]}': use "
            "method='project' (--method project), or leave the form out of forms= (--forms)"
        )
    made = {form for form in asked if form is Form.DENSE or form.decomposed in method.forms}
    if asked and not made:
        others = [each.name for each in METHODS if {form.decomposed for form in asked} & each.forms]
        use = f"use method={others[0]!r} (--method {others[0]}), or ask" if others else "ask"
        what = f"the form '{min(asked)}'" if len(asked) == 1 else f"any of the forms {', '.join(sorted(asked))}"
        raise ValueError(f"method {method.name!r} does not make {what}: {use} for other forms (forms=, --forms)")


def _chosen(site: Site, asked: frozenset[Form]) -> Site:
    if site.forms == {Form.KEEP}:
        return site
    taken = frozenset(form for form in asked if site.takes(form))
    layer = site.layer
    if any(form.over_base for form in taken):
        layer = layer.wholly()
        if layer.side != "input":
            layer, taken = site.layer, frozenset(form for form in taken if not form.over_base)
    note = (
        site.note if taken - {Form.KEEP, Form.DENSE} else ("the layer cannot take any of the forms that were asked for")
    )
    return replace(site, layer=layer, forms=taken | {Form.KEEP} | (site.forms & {Form.DENSE}), note=note)
