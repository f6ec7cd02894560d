"""The report in a real browser, opened from disk with the network shut."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specgen.cli.app import run

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three sides of tiny models."""
    out = tmp_path_factory.mktemp("report")
    prompts = out / "prompts.txt"
    prompts.write_text("a jig on the flute\na slow air\n")
    dual = str(tiny_folder / "dual.yaml")
    sides = [dual, f"{dual} --no-draft", f"{dual} --rule keep"]
    options = ["--prompts", str(prompts), "-d", "0.4", "--short-clips", "8", "--no-quality"]
    assert run(["compare", *sides, *options, "--report", str(out / "page")]) == 0
    return out / "page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def open_page(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """The page, and everything the browser complained about or asked the network for."""
    page = browser.new_context(offline=True, **options).new_page()
    troubles: list[str] = []
    bad = ("error", "warning")
    page.on("console", lambda m: troubles.append(m.text) if m.type in bad else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url[:80]))
    page.on(
        "request",
        lambda r: troubles.append(r.url[:80]) if not r.url.startswith(("file:", "data:")) else None,
    )
    page.goto(path.as_uri(), wait_until="load")
    return page, troubles


def test_players_load_and_nothing_complains(browser: Any, folder: Path) -> None:
    page, troubles = open_page(browser, folder / "index.html")
    page.wait_for_function(
        "[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)", timeout=20_000
    )
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
    assert len(lengths) == 6 and all(0.35 < length < 0.6 for length in lengths)
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.locator("h2", has_text="Identity").count() == 1
    assert page.locator(".summary h2").inner_text() == "Every promise is kept"
    assert page.locator(".tile strong").first.inner_text() == "100%"
    assert page.locator("svg circle").count() > 0
    assert troubles == []


def test_a_player_plays_and_stops_the_others(browser: Any, folder: Path) -> None:
    page, troubles = open_page(browser, folder / "index.html")
    playing = page.evaluate(
        """async () => {
            const [a, b] = document.querySelectorAll('audio');
            a.loop = true;
            await a.write();
            await b.write();
            for (let i = 0; i < 50 && b.currentTime === 0; i++)
                await new Promise(done => setTimeout(done, 50));
            return [a.paused, b.currentTime > 0];
        }"""
    )
    assert playing == [True, True]
    assert troubles == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_at_phone_width(browser: Any, folder: Path, scheme: str) -> None:
    """Nothing but tables scrolls sideways; text is 12 px or more and stands out."""
    page, troubles = open_page(
        browser,
        folder / "index.html",
        viewport={"width": 360, "height": 740},
        color_scheme=scheme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    small = page.evaluate(
        """[...document.querySelectorAll('p, li, td, th, h1, h2, h3, figcaption, .key')]
            .map(e => parseFloat(getComputedStyle(e).fontSize)).filter(size => size < 12)"""
    )
    assert small == []
    drawn = page.evaluate(
        """(() => { const s = document.querySelector('svg');
            const scale = s.getBoundingClientRect().width / s.viewBox.baseVal.width;
            return parseFloat(getComputedStyle(s.querySelector('text')).fontSize) * scale; })()"""
    )
    assert drawn > 9
    contrast = page.evaluate(
        """(() => {
            const light = c => { const [r, g, b] = c.match(/\\d+/g).map(v => {
                v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const ground = light(getComputedStyle(document.body).backgroundColor);
            return [...document.querySelectorAll('p, li, td, th, .lossy')].map(e => {
                const ink = light(getComputedStyle(e).color);
                return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05); });
        })()"""
    )
    assert min(contrast) >= 4.5
    assert (ground := page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(ground.split("(")[1].split(",")[0]) > 128) == (scheme == "light")
    assert troubles == []


def test_single_clips_have_a_page(
    browser: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sidecars = sorted(map(str, (folder / "clips").rglob("*.json")))[:4]
    out = folder / "clips.html"
    assert run(["report", *sidecars, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page, troubles = open_page(browser, out)
    page.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
    assert page.locator("audio").count() == 4 and page.locator("tbody tr").count() == 4
    assert troubles == []
