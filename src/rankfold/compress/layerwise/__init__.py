"""Fitting layer after layer to the original network, given what the compressed one feeds it."""
