"""The page in a browser: Debian's chromium, headless. `tox -e report` runs these."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from written_runs import bench_run, sweep_run

from robustglimpse.report import page
from robustglimpse.report.board import make_board
from robustglimpse.store import read_run

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --hide-scrollbars --enable-logging=stderr --v=0 --virtual-time-budget=3000"
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]
DARK = "--blink-settings=preferredColorScheme=0"
# A page of 400 px width that writes down what the report inside it says of itself.
FRAME = """<!doctype html><body style="margin:0"><iframe id=f src="{page}" style="width:400px;height:5000px">
</iframe><pre id=told></pre><script>
addEventListener("message", (event) => {{ told.textContent = JSON.stringify(event.data); }});
</script>"""
PROBE = """<script>
const names = () => [...document.querySelector("table[data-sort]").tBodies[2].rows]
  .filter((row) => !row.hidden && row.className !== "group").map((row) => row.cells[0].textContent.trim());
const heads = [...document.querySelectorAll("th button")];
const press = (text) => heads.find((button) => button.textContent.startsWith(text)).click();
const told = {width: innerWidth, needs: document.documentElement.scrollWidth, first: names()};
press("Accuracy"); told.highest = names();
press("Accuracy"); told.lowest = names();
press("Model"); told.byModel = names();
told.sorted = document.querySelector("th[aria-sort]").textContent.trim();
const filter = document.querySelector("input[type=search]");
filter.value = "96.0 standard"; filter.dispatchEvent(new Event("input"));
told.kept = [...document.querySelectorAll("table[data-sort] tbody tr:not(.group)")]
  .filter((row) => !row.hidden).map((row) => row.cells[0].textContent.trim());
told.count = document.querySelector("output").textContent;
const boxes = [...document.querySelectorAll(".scroll")];
told.scrollers = boxes.filter((box) => box.scrollWidth > box.clientWidth).length;
parent.postMessage(told, "*");
</script></body>"""


def browse(folder: Path, file: Path, *flags: str) -> tuple[str, str]:
    """Return what chromium printed, and what it logged, for a file."""
    command = [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", *flags, file.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of two runs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("page")
    runs = [read_run(bench_run(folder / "bench")), read_run(sweep_run(folder / "sweep"))]
    (folder / "report.html").write_text(page.to_html(make_board(runs)))
    return folder / "report.html"


def test_nothing_is_logged_and_nothing_is_asked_for(written: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    dom, logged = browse(tmp_path, written, "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" not in logged, logged
    assert dom.count("<th") > 50
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', log.read_text()))
    blank = tmp_path / "blank.html"
    blank.write_text("<!doctype html><title>blank</title>")
    browse(tmp_path, blank, "--dump-dom", f"--log-net-log={log}")
    own = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', log.read_text()))
    assert {url.partition("?")[0] for url in asked} <= {url.partition("?")[0] for url in own}


def test_a_broken_page_would_be_noticed(written: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(written.read_text().replace('"use strict";', '"use strict"; nowhere();', 1))
    _, logged = browse(tmp_path, broken, "--dump-dom")
    assert "CONSOLE" in logged
    assert "nowhere is not defined" in logged


def test_scripts_sort_and_filter_and_nothing_is_wider_than_400_px(written: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(written.read_text().replace("</body>", PROBE))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=probed.name))
    dom, _ = browse(tmp_path, frame, "--dump-dom", "--window-size=900,5200")
    told = json.loads(re.search(r'<pre id="told">(.*?)</pre>', dom)[1])
    assert told["needs"] <= told["width"] <= 400
    assert told["scrollers"] >= 2, "wide tables scroll in their own box"
    # The third group is the standard protocol: a 80, b 79, c 0.
    assert told["first"] == told["highest"] == ["a", "b", "c"]
    assert told["lowest"] == ["c", "b", "a"]
    assert told["byModel"] == ["a", "b", "c"]
    assert told["sorted"] == "Model"
    assert told["kept"] == ["c"]
    assert told["count"] == "1 of 14 rows"


@pytest.mark.parametrize(("flags", "ground"), [([], (255, 255, 255)), ([DARK], (15, 19, 23))])
def test_the_page_follows_the_colour_scheme(
    flags: list[str], ground: tuple[int, ...], written: Path, tmp_path: Path
) -> None:
    shot = tmp_path / "shot.png"
    browse(tmp_path, written, f"--screenshot={shot}", "--window-size=1200,1600", *flags)
    picture = Image.open(shot).convert("RGB")
    assert picture.getpixel((3, 3)) == ground
    colours = picture.getcolors(maxcolors=1 << 24)
    assert colours is not None and len(colours) > 100


def test_tables_are_there_without_scripts(written: Path, tmp_path: Path) -> None:
    # Left out here: a frame without scripts may come late on a busy machine, and leave the picture empty.
    bare, scripts = re.subn(r"<script\b.*?</script>", "", written.read_text(), flags=re.DOTALL)
    assert scripts, "there is one to leave out"
    still = tmp_path / "still.html"
    still.write_text(bare)
    shots = tmp_path / "with.png", tmp_path / "without.png"
    browse(tmp_path, written, f"--screenshot={shots[0]}", "--window-size=1200,1600")
    browse(tmp_path, still, f"--screenshot={shots[1]}", "--window-size=1200,1600")
    inked = [sum(Image.open(shot).convert("L").point(lambda v: v < 128).histogram()[1:]) for shot in shots]
    assert inked[1] > 0.9 * inked[0] > 5000, "the same but for the filter and the arrows"
