"""Training of the four networks: one file per network, one loop, resumable checkpoints."""
