"""Agents that learn which diffusion steps to skip, and the command line."""
