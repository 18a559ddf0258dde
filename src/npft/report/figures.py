"""Figures as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from npft.errors import NpftError, in_one_line


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the file's name ends with.

    Raises:
        NpftError: there is no such format, or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise NpftError(
            f"the plot {str(path)!r} cannot be written ({in_one_line(error)}): give a .png, .svg "
            "or .pdf file in a folder that is there"
        ) from error
