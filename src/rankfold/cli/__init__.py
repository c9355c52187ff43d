"""The command line; imported by nobody. Nothing here imports torch before a command runs."""
