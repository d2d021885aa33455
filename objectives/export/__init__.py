"""Model directories: dense or packed, and the proof that a fresh process scores the same."""
