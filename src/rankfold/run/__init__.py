"""What all long work shares: cells that are run once and read back."""
