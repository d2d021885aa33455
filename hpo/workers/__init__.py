"""Work on a study: the ask/tell loop, its queue, its signs of life, references, failures."""
