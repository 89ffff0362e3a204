"""Training of the networks: one file per network, one loop, resumable checkpoints."""
