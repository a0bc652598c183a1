"""From words to a checked config, and from a config to objects."""
