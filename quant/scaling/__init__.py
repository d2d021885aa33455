"""Input scales: salience, the search for the exponent alpha, folding."""
