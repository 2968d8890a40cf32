"""One worker's life: load, be known, serve, report, drain."""
