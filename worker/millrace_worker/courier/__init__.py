"""The courier: a process beside the engine that moves records between a bucket and a directory. No torch, no redis."""
