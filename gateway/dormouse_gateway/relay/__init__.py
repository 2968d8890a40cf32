"""The slow path: calls that Envoy alone cannot send."""
