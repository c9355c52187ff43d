"""The weight of a factored layer: how factors form it, and what it does in code written for a tensor."""
