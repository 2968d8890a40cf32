"""Whether the rows of several calls may run together."""
