"""`python -m graddiag` is the command."""

from graddiag.cli import main

main()
