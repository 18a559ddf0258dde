"""Plugin packages as pip leaves them: a module, and metadata with entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

GOOD = """
from typing import ClassVar
from npft.hooks import hookimpl
from npft.samplers import StepUniform

class Mine(StepUniform):
    name: ClassVar[str] = "mine"

@hookimpl
def npft_samplers():
    return [Mine]
"""

API = "1.0 = {module}"

Install = Callable[..., None]


@contextmanager
def installing(folder: Path) -> Iterator[Install]:
    """Give what puts a distribution into ``folder``; its modules are forgotten afterwards."""

    def install(name: str, code: str, points: str = "plugin = {module}", api: str = API) -> None:
        module = name.replace("-", "_")
        (folder / f"{module}.py").write_text(code)
        info = folder / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        lines = f"[npft]\n{points}\n[npft.api]\n{api}\n"
        (info / "entry_points.txt").write_text(lines.format(module=module))

    yield install
    for name in [name for name in sys.modules if name.startswith("npft_")]:
        del sys.modules[name]
