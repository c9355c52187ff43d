"""One object of each open kind, as a user would write it: at most 40 lines each, through public names alone."""
