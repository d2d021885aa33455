"""Who gives trials up: one protocol, and its inhabitants by name."""
