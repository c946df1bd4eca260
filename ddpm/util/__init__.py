"""Checks of arguments, errors, files and progress lines."""
