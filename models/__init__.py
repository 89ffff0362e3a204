"""Domain nouns, volumes, networks, training, weights, the engine and the synthetic cohort."""

from models.memory import keep_freed_memory

keep_freed_memory()
