"""Which forms are weighed: those that were asked for by name, or all that need not be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rankfold.sites import Form, Site, SiteList

EVERY = "all"
Forms = str | Sequence[str]


def asked_forms(forms: Forms | None) -> frozenset[Form] | None:
    """The forms of these names, or of one text with commas between them; None for None: all but the optional ones.

    ``ValueError`` for an unknown name, or none at all.
    """
    if forms is None:
        return None
    names = [name.strip() for name in forms.split(",")] if isinstance(forms, str) else list(forms)
    if EVERY in names:
        return frozenset(Form)
    found = frozenset(Form(name) for name in names if name)
    if not found - {Form.KEEP}:
        raise ValueError("forms: name at least one beside 'keep', such as 'factored', or 'all' for every form")
    return found


def chosen(found: SiteList, forms: Forms | None) -> SiteList:
    """``found``, in which each site has the forms that were asked for, and is observed as these need it.

    A form over a base is left out where a layer's inputs cannot be observed whole.
    """
    asked = asked_forms(forms)
    if asked is None:
        return found
    return replace(found, items=tuple(_chosen(site, asked) for site in found))


def _chosen(site: Site, asked: frozenset[Form]) -> Site:
    if site.forms == {Form.KEEP}:
        return site
    taken = frozenset(form for form in asked if site.takes(form))
    layer = site.layer
    if any(form.over_base for form in taken):
        layer = layer.wholly()
        if layer.side != "input":
            layer, taken = site.layer, frozenset(form for form in taken if not form.over_base)
    note = site.note if taken - {Form.KEEP, Form.DENSE} else "none of the forms that were asked for is possible here"
    return replace(site, layer=layer, forms=taken | {Form.KEEP} | (site.forms & {Form.DENSE}), note=note)
