"""From two checkpoints, or from adapters, to one adapter within a budget."""
