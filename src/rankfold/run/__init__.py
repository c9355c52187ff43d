"""What long work shares: files, claims of directories, containers of tensors, digests of data, progress, processes,
cells that are computed once."""
