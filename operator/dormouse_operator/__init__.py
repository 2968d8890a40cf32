"""The control side: the coordinator (which worker owns which shard), the autoscaler (how many workers), and who leads."""
