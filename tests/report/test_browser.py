"""The page in a real headless browser: it renders, every figure is there, no error, no request, no sideways scroll."""

import contextlib
import html
import io
import json
import re
import shutil
import socketserver
import subprocess
import threading

import pytest
from PIL import Image

from tests.report.test_page import full_page
from tests.report.test_tables_page import tables_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium found; apt-get install chromium")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions",
    "--hide-scrollbars", "--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=3000",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter,Translate",
    "--disable-domain-reliability",
)  # fmt: skip

# Chromium itself looks for updates and the time at these, whatever its flags say; test_page.py shows that the page
# names no address at all.
ITS_OWN = re.compile(r"^\w+ (http://)?[\w.-]*\.?(google|googleapis|gvt1|gstatic)\.com[:/]")

# Runs in a copy of the page whose policy allows scripts (the page itself has and allows none), in a frame, because
# headless windows are at least 500 pixels wide.
PROBE = """<script>
addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  parent.document.documentElement.dataset.probe = JSON.stringify({
    images: all("img").length,
    broken: all("img").filter((image) => !image.complete || image.naturalWidth === 0).map((image) => image.alt),
    charts: all("svg").length,
    empty: all("svg").filter((svg) => svg.getBoundingClientRect().width < 200 || !svg.querySelector("path")).length,
    narrow: all("img").filter((image) => image.getBoundingClientRect().width < 40).length,
    fetched: performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 80)),
    width: innerWidth,
    content: document.documentElement.scrollWidth,
  });
});
</script>"""


@contextlib.contextmanager
def recording_proxy():
    """(port, requests): a proxy that answers nothing and keeps the first line of all that it is asked for."""
    requests = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            requests.append(self.rfile.readline().decode(errors="replace").strip())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1], requests
        finally:
            server.shutdown()
            thread.join()


def browse(path, tmp_path, *flags):
    """(stdout, console lines, requests for other addresses) of one visit."""
    with recording_proxy() as (port, requests):
        proxy = (f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        # A machine shared with other jobs may take a minute for what takes a second alone.
        done = subprocess.run(
            [CHROMIUM, *FLAGS, *proxy, profile, *flags, path.as_uri()], capture_output=True, timeout=300, check=True
        )
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    foreign = [line for line in requests if not ITS_OWN.match(line)]
    return done.stdout.decode(errors="replace"), console, foreign


@pytest.fixture(scope="module")
def text(vit):
    return full_page(vit)


@pytest.mark.parametrize("kind", ["quantization", "tables"])
def test_page_shows_without_errors_or_requests(kind, text, vit, tmp_path):
    text = tables_page(vit) if kind == "tables" else text
    page, shot = tmp_path / "report.html", tmp_path / "shot.png"
    page.write_text(text)
    _, console, requests = browse(page, tmp_path, "--window-size=1200,1600", f"--screenshot={shot}")
    assert console == []
    assert requests == []
    image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    assert image.size == (1200, 1600)
    assert len(image.getcolors(1 << 24)) > 500  # noise images and colour maps, not an empty page


@pytest.mark.parametrize("width", [390, 1200])
def test_every_figure_is_drawn_and_nothing_scrolls_sideways(text, vit, tmp_path, width):
    page = tmp_path / "probe.html"
    scripted = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", PROBE + "</body>")
    style = f"width:{width}px; height:900px; border:0"
    page.write_text(f'<!doctype html><iframe style="{style}" srcdoc="{html.escape(scripted)}"></iframe>')
    dom, console, requests = browse(page, tmp_path, "--window-size=1300,1000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r'data-probe="([^"]*)"', dom)[1]))
    assert console == [] and requests == []
    assert found["images"] == 3 * 4 + 3 * vit.module.depth and found["broken"] == [] and found["narrow"] == 0
    assert found["charts"] == 4 + vit.module.depth and found["empty"] == 0
    assert [address for address in found["fetched"] if not address.startswith("data:")] == []
    assert found["width"] == width and found["content"] == width


def test_the_checks_above_would_notice(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://example.invalid/x.png'><script>console.error('seen')</script>")
    _, console, requests = browse(page, tmp_path, "--dump-dom")
    assert any("seen" in line for line in console)
    assert any("example.invalid" in line for line in requests)
