"""optuna-dashboard with everything we know of a study on it; `serve.serve` runs it."""
