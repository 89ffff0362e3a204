"""Harness: how good the planner is, measured against what is known independently."""
