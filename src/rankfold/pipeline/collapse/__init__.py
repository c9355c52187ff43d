"""The study of why the layers of a network are low-rank."""
