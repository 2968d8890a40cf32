"""What Envoy is told: at its start, and by xDS."""
