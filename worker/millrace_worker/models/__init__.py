"""One decoder for the Llama-shaped families, its configuration and the loader of its weights. No Redis, no engine."""
