"""Text: where it comes from, its documents, token sequences and batches."""
