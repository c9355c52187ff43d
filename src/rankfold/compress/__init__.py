"""Making a trained network smaller: methods, rank rules, budgets, plans, repair."""
