"""The relay's port: unary calls, streams, and what is answered without a worker."""
