"""The ground: what the rest stands on, and no method knows."""
