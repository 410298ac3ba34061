"""Data: shards, their index, the order of samples, packing and loading."""
