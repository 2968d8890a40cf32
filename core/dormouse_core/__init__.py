"""Decisions: pure functions and small state machines. They take what was observed and `now`, and say what to do and why."""
