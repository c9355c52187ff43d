"""From what was measured to a plan."""
