"""The API server: requests, kinds, copies of what it has."""
