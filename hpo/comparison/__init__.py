"""A comparison of methods, of ready-made models and of what a study found: what was measured, and what it says."""
