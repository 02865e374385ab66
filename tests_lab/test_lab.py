"""The page of notebook 00 and the site in a real browser: sliders move the picture, links lead to pages."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("selenium", reason="needs selenium: make test-lab installs it")

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from flowoe_lib.desk.explorer_page import DIALS

ROOT = Path(__file__).parents[1]
NOTEBOOK = "notebooks/00_explore.ipynb"
SITE = ROOT / "build" / "site"
PATIENCE_S = 60
BYTES = """
const done = arguments[arguments.length - 1];
fetch(arguments[0].src).then(r => r.arrayBuffer()).then(b => done(Array.from(new Uint8Array(b))));
"""
"""What a picture is made of, wherever the browser keeps it."""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    """Headless Chromium with a profile of its own."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        absent = "Chromium" if chromium is None else "chromedriver"
        pytest.skip(f"no {absent} is installed; on Debian: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    with Chrome(options, Service(driver)) as opened:
        yield opened


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the notebook alone, its outputs cleared: what is shown was run."""
    notebook = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    copy = tmp_path / "checkout" / NOTEBOOK
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    for mark in ("pyproject.toml", "flowoe_lib"):
        (tmp_path / "checkout" / mark).symlink_to(ROOT / mark)
    return tmp_path / "checkout"


@contextmanager
def serving(*command: str, checkout: Path) -> Iterator[str]:
    """The address of a server with this interpreter's kernels and none of the user's configuration."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(checkout.parent / name.lower()) for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
        "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "FLOWOE_FIGURES",
    )}  # fmt: skip
    own |= {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"), "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own
    log = checkout.parent / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--no-browser", f"--port={port}"],
            cwd=checkout, env=environment, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        for _ in range(10 * PATIENCE_S):
            assert server.poll() is None, log.read_text()
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def find(browser: Chrome, xpath: str) -> WebElement:
    """The element, once it is there."""
    found: WebElement = WebDriverWait(browser, PATIENCE_S).until(lambda b: b.find_element(By.XPATH, xpath))
    return found


def picture(browser: Chrome) -> bytes:
    image = find(browser, "//img[contains(@class, 'widget-image')]")
    return bytes(browser.execute_async_script(BYTES, image))


def slider(browser: Chrome, label: str) -> WebElement:
    return find(
        browser, f"//*[contains(@class, 'widget-slider')][label[contains(., '{label}')]]//*[@role='slider']"
    )


def moved(browser: Chrome, label: str, key: str) -> None:
    """Press a key often, faster than the page can be drawn."""
    slider(browser, label).send_keys(*[key] * 5)


def check_page(browser: Chrome) -> None:
    """A slider for each setting, a picture that follows sliders and a button, and no error."""
    wait = WebDriverWait(browser, PATIENCE_S)
    first = picture(browser)
    assert first.startswith(b"\x89PNG")
    assert len(browser.find_elements(By.XPATH, "//*[@role='slider']")) == len(DIALS)
    for label in ("β", "drift", "level"):
        moved(browser, label, Keys.ARROW_RIGHT)
        wait.until(lambda b: picture(b) != first)
        # The days are the same ones as before, and the last move is not lost among the others.
        moved(browser, label, Keys.ARROW_LEFT)
        wait.until(lambda b: picture(b) == first)
    moved(browser, "volatility,", Keys.ARROW_RIGHT)
    wait.until(lambda b: picture(b) != first)
    find(browser, "//button[contains(@class, 'widget-button')][contains(., 'reset')]").click()
    wait.until(lambda b: picture(b) == first)
    # In a narrow window the pictures stand below each other, within it.
    browser.set_window_size(500, 1000)
    images = browser.find_elements(By.XPATH, "//img[contains(@class, 'widget-image')]")
    assert len(images) == 4
    wait.until(lambda b: len({image.rect["x"] for image in images}) == 1)
    assert all(image.rect["width"] <= 500 for image in images)
    assert "Traceback" not in browser.find_element(By.TAG_NAME, "body").text
    assert not browser.find_elements(By.XPATH, "//*[contains(@data-mime-type, 'error')]")


def test_in_jupyterlab(browser: Chrome, checkout: Path) -> None:
    options = ["--IdentityProvider.token=test", "--allow-root", "--ServerApp.root_dir=."]
    with serving("jupyterlab", *options, checkout=checkout) as address:
        browser.get(f"{address}/lab/tree/{NOTEBOOK}?token=test")
        # Before that the menu's commands are disabled, and they stay so while it is open.
        find(browser, "//*[contains(text(), '| Idle')]")
        find(browser, "//*[contains(@class, 'lm-MenuBar-itemLabel')][text()='Run']").click()
        find(browser, "//li[@data-command='runmenu:run-all']").click()
        check_page(browser)


def test_in_voila(browser: Chrome, checkout: Path) -> None:
    with serving("voila", NOTEBOOK, checkout=checkout) as address:
        browser.get(address)
        check_page(browser)
        # There is no side bar here: all of the page fits.
        shown = browser.find_elements(By.XPATH, "//img[contains(@class, 'widget-image')] | //table")
        assert len(shown) > 4
        assert all(element.rect["x"] + element.rect["width"] <= 500 for element in shown)


def check_illustrated(browser: Chrome, title: str) -> None:
    """The page with this title, whose pictures are all loaded."""
    find(browser, f"//article//h1[starts-with(., '{title}')]")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda b: b.execute_script("return document.readyState") == "complete"
    )
    widths = browser.execute_script("return Array.from(document.images, image => image.naturalWidth)")
    assert widths
    assert all(widths)


def test_site_from_its_landing_page(browser: Chrome) -> None:
    browser.get((SITE / "index.html").as_uri())
    check_illustrated(browser, "FlowOE, replicated")
    find(browser, "//article//a[contains(., '03_imitation')]").click()
    check_illustrated(browser, "3. Imitation")
    # Mathematics is drawn without a network.
    find(browser, "//mjx-container//mjx-math")
    find(browser, "//nav//a[text()='Gallery']").click()
    check_illustrated(browser, "Gallery")
    find(browser, "//nav//a[text()='Running it']").click()
    find(browser, "//td[contains(., 'make site')]")
    find(browser, "//a[text()='API of the library']").click()
    find(browser, "//nav//a[text()='FlowOE, replicated']").click()
    check_illustrated(browser, "FlowOE, replicated")
    assert browser.current_url == (SITE / "index.html").as_uri()
    find(browser, "//article//a[starts-with(., '3. higher profit')]").click()
    check_illustrated(browser, "Claim 3")
    find(browser, "//article//h2[starts-with(., 'What would change it')]")
    browser.back()
    find(browser, "//article//a[contains(., 'your order')]").click()
    find(browser, "//article//td[contains(., 'COST_LIMIT_BPS')]")
    browser.get((SITE / "api" / "flowoe_lib.html").as_uri())
    find(browser, "//h1[contains(., 'flowoe_lib')]")


def test_internal_links_of_the_site_lead_somewhere() -> None:
    found = [path for path in SITE.rglob("*.html") if "_static" not in path.parts]
    # Scripts have templates of links.
    pages = {p: re.sub(r"(?s)<script.*?</script>", "", p.read_text(encoding="utf-8")) for p in found}
    targets = {p: set(re.findall(r"\b(?:id|name)=[\"']([^\"']+)", text)) for p, text in pages.items()}
    assert {SITE / f"{name}.html" for name in ("index", "docs/gallery", "api/flowoe_lib")} <= set(pages)
    notebooks = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks == {page.stem for page in pages if page.parent == SITE / "notebooks"}
    dead = []
    for page, text in pages.items():
        for link in set(re.findall(r"\b(?:href|src)=[\"']([^\"']+)", text)):
            url = urlsplit(unescape(link))
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            anchors = targets.get(target, set()) | {""}
            if not url.scheme and not (target.is_file() and unquote(url.fragment) in anchors):
                dead.append(f"{page.relative_to(SITE)}: {link}")
    assert dead == []
