"""Estimators of a matrix, in scikit-learn's form."""
