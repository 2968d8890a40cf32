"""What tests share: simulated time, a store in memory with faults, real etcd, free ports."""
