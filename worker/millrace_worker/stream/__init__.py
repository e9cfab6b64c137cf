"""The worker's side of the queue: leases, results, upkeep. No torch."""
