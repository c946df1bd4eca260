"""The files of `skipdiff upscale`."""
