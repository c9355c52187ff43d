"""What long work shares: a directory held by one job, the same request going on in it, cells that are computed once,
digests of data, progress; ``disk/`` for files, ``processes/`` for who is at work."""
