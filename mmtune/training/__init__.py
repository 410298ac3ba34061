"""Training: the loop, and what it is made of, see `mmtune.training.loop`."""
