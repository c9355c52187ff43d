"""Steps that stay among matrices, or kernels, of low rank."""
