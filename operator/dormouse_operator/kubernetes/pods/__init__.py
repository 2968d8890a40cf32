"""The provider of a cluster: pods, what is wrong with them, and what is done about it."""
