"""The pages in a real browser: no complaint, nothing too wide, light and dark."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from npft.report import comparison, page
from npft.report.reading import read_run

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here: apt-get install chromium"
)

PROBE = """
<script>
window.addEventListener("load", () => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const plots = [...document.querySelectorAll("figure svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    return box.width > 200 && box.height > 100 && svg.querySelectorAll("path").length > 5;
  });
  const tables = [...document.querySelectorAll(".wide")];
  const cut = tables.map((box) => box.scrollWidth > box.clientWidth);
  document.title = JSON.stringify({ wide, plots, cut });
});
</script>
"""


def chromium(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", "--virtual-time-budget=2000",
            f"--user-data-dir={page.parent / 'profile'}", *flags, page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip


def pixel(png: bytes) -> tuple[int, ...]:
    """The first pixel of a PNG: the first scan line begins with it whatever its filter."""
    data, at, channels = b"", 8, {2: 3, 6: 4}[png[25]]
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    return tuple(zlib.decompress(data)[1 : 1 + channels][:3])


@pytest.fixture(scope="module", params=["run", "comparison"])
def file(request, run: Path, tmp_path_factory) -> Path:
    found = read_run(run)
    text = page.render(found) if request.param == "run" else comparison.render([found, found])
    file = tmp_path_factory.mktemp("browser") / "page.html"
    file.write_text(text)
    return file


@pytest.mark.parametrize("width", [390, 1280])
def test_no_complaint_no_overflow_no_empty_plot(file: Path, width: int) -> None:
    probed = file.with_name("probed.html")
    probed.write_text(file.read_text().replace("</body>", PROBE + "</body>"))
    told = chromium(probed, "--dump-dom", f"--window-size={width},900")
    assert "CONSOLE" not in told.stderr
    title = re.search(r"<title>(.*?)</title>", told.stdout)
    assert title is not None
    found = json.loads(title[1])
    assert found["wide"] <= 0
    assert found["plots"]
    assert all(found["plots"])
    assert found["cut"]
    assert not any(found["cut"])


def test_a_script_that_complains_is_noticed(file: Path) -> None:
    broken = file.with_name("broken.html")
    broken.write_text("<!doctype html><script>nothing.here()</script>")
    assert "CONSOLE" in chromium(broken, "--dump-dom").stderr


def test_light_and_dark_have_their_own_ground(file: Path) -> None:
    grounds = []
    for name, flags in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
        shot = file.with_name(f"{name}.png")
        chromium(file, *flags, f"--screenshot={shot}", "--window-size=1280,2400")
        grounds.append(pixel(shot.read_bytes()))
    assert sum(grounds[0]) > 700
    assert sum(grounds[1]) < 120
