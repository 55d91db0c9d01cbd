"""`python -m keyheat.cli`, the same as `keyheat`."""

from keyheat.cli.app import main

main()
