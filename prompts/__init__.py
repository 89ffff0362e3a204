"""Versioned prompt files, one folder per set, and the loader that reads and renders them."""
