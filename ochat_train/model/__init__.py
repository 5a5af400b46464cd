"""The model: base, packed batches, attention kernels, layers, loss."""
