"""What is stored of a study and read back: its record, contract, events, and how one is found."""
