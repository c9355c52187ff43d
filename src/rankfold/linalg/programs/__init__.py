"""Convex programs that fit a matrix of low norm, with certificates."""
