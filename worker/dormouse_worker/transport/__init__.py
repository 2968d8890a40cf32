"""From HTTP/2's bytes to calls and back."""
