"""Tables of entries: read from files and arrays, checked, named."""
