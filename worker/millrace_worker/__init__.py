"""The worker: a front process that talks to Redis, and an engine process that owns the device."""
