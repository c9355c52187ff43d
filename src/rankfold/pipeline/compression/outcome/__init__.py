"""What came out of a compression: measured, put into words, written."""
