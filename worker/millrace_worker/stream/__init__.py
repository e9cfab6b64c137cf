"""The queue's half of a worker: leases jobs from Redis and writes back what became of them. No torch."""
