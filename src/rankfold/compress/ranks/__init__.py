"""Budgets, and the rules that choose ranks within them."""
