"""A plan carried out: checked against the model, its factors found, its layers built, filled and put in place."""
