"""Reading, writing, cutting and degrading pictures."""
