"""`python -m celeriac.cli` is the `celeriac` command."""

from celeriac.cli import main

main()
