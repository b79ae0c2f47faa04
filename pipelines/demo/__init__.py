"""The whole pipeline at toy size, for a laptop."""
