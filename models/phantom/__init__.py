"""The synthetic cohort: patients whose response to every protocol is known.

Nothing in `tools/` and no node or policy in `agent/` may import this package: it holds the truth. A test enforces it.
"""
