"""Other libraries' products, where they are installed.

:mod:`rival` says what a rival is, one file per library makes its products, :mod:`every` lists
them, and :mod:`apart` measures each in a process of its own (:mod:`worker`).
"""
