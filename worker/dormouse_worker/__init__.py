"""One worker: loads a model, batches, keeps the sessions of its shards, commits."""
