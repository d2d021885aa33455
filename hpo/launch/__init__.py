"""Many workers from one command."""
