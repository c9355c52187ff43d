"""Compressed deep linear networks: tables and figures."""
