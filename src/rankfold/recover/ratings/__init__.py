"""Ratings: biases, factors and who rated what, averaged over draws from their posterior."""
