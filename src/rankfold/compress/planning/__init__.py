"""From what was measured to a plan, and from a plan to a smaller model."""
