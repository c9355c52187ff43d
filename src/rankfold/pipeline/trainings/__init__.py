"""Trainings from a configuration, and grids of them."""
