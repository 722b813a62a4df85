"""`python -m harmonywatch` is `harmonywatch`."""

from harmonywatch.cli import main

main()
