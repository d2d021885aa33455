"""Study databases: opening, locks, journals, patience with lost connections."""
