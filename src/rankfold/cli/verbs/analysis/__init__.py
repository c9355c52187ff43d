"""Figures, sentences and pages come out; no model is written."""
