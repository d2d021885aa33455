"""What was found: ranking at equal bits, confirmation on held-out text, what mattered."""
