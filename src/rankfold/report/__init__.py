"""The report of a compression: one HTML file with numbers, spectra and curves."""

from rankfold.report.render import render, write_report
from rankfold.report.values import (
    CurvePoint,
    FigureKind,
    LayerRow,
    Offer,
    OfferedLayer,
    ReportData,
    SearchShown,
    TriedPoint,
)

__all__ = [
    "CurvePoint", "FigureKind", "LayerRow", "Offer", "OfferedLayer", "ReportData", "SearchShown", "TriedPoint",
    "render", "write_report",
]  # fmt: skip
