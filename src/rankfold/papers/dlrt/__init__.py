"""Training at low rank from the first step: tables of its papers, and all ways there side by side."""
