"""Calls decoded, run together, and encoded again."""
