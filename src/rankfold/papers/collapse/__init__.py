"""Neural rank collapse: figures."""
