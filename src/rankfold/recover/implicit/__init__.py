"""Implicit feedback: who did what, perhaps how often, and nothing said about the rest."""
