"""What is known of a matrix: operators that measure it, and the arrays that they compute with."""
