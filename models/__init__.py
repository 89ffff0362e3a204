"""Domain nouns, volumes, networks, training, weights, the engine and the synthetic cohort."""
