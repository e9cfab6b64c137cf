"""The front: an asyncio process between the queue and the engine process. No torch."""
