"""One file for each command, in the rooms of what comes out; those that take no model of yours lie beside the rooms."""
