"""The paged continuous batcher: token ids in, token ids out. No redis."""
