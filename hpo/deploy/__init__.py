"""From a study or a setting to a model directory, its card, and the commands that repeat it."""
