"""What data say of a matrix: moments, projections, regressions, and bottlenecks measured on them."""
