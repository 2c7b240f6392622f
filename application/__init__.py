"""What a user can do with her: each use case awaits ports and yields events, and names no adapter."""
