"""``python -m npft``."""

from npft.cli import main

main()
