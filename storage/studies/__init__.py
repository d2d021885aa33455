"""Study databases: opening, locks, journals, retries after lost connections."""
