"""One compression, from a request to the files of its result."""
