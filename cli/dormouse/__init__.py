"""The `dormouse` command, the Python client, the local provider, and what a handler imports."""
