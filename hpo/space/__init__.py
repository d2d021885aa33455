"""The search space: its dimensions, their ranges, and which settings may be compared with which."""
