"""Which setting to try next, which trial to give up, and when to stop."""
