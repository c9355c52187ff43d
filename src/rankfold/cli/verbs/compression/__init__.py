"""A smaller model comes out: planned, made, made smaller still, written for other programs."""
