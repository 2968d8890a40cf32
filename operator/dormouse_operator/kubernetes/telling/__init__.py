"""What a function's object says."""
