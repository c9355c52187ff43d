"""Dynamical low-rank training: layers on the manifold of low rank, their optimizer, and how it chooses ranks."""
