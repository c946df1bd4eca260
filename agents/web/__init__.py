"""The page of `skipdiff web`."""
