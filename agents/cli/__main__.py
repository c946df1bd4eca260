"""`python -m agents.cli` runs the command line."""

from agents.cli import main

main()
