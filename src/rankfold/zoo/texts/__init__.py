"""Files of text: what is read of them, and labels beside it."""
