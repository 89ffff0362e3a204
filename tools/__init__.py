"""The typed tools: plain functions over a workspace, one file each, and their registry."""
