"""Who chooses the next setting: one protocol, and its inhabitants by name."""
