"""What every process of Dormouse needs to touch the world: the store, the clock, logging, metrics, settings, gRPC options."""
