"""Named steps that survive anything: an asyncio-native orchestration library."""
