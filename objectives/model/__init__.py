"""Models: loading, layers and their roles, folding, number types, memory."""
