"""Factored networks made narrower inside their bottlenecks, without data."""
