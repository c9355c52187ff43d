"""After compression: BatchNorm statistics, blocks and whole networks trained towards the original."""
