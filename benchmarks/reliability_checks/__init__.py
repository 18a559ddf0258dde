"""The checks of ``reliability.py``; each has a ``main(arguments)``."""
