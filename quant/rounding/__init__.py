"""How a matrix becomes codes: one protocol, and its inhabitants by name."""
