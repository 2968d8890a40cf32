"""What a function consists of in a cluster, made and kept."""
