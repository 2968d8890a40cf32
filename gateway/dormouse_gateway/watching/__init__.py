"""The routing table, kept like the store."""
