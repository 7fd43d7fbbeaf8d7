"""The page of a preview: complete in itself, deaf to what hostile manifests hold, and fit for any screen.

It is opened in Chromium, without a network, at the width of a phone and of a desk. Chromium comes from Debian
(tests/servers/chromium.py installs it where it may); where there is none, these tests are skipped and say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from annotator.errors import InvalidInputError
from annotator.labels.preview import preview
from tests.labels import make_output as module
from tests.labels.make_output import Output, make_output
from tests.servers import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.timeout(700)  # the first test may have to install Chromium

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
HOSTILE = '"><img src=x onerror="window.pwned=1"></script><script>window.pwned=1</script>\'{{7*7}}<!--'
STATUSES = {2: "unreadable", 3: "no_person", 4: "rejected"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        path = chromium.install()
    except chromium.NotInstallableError as err:
        pytest.skip(f"no Chromium: {err}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=chromium.OPTIONS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """Eight images: two with bad labels, one whose file went, one hostile in all its texts."""
    root = tmp_path_factory.mktemp("page")
    folder = root / "manifest" / "pictures"
    folder.mkdir(parents=True)
    for row in range(8):
        shades = np.linspace(0, 255, 480 * 360).reshape(480, 360).astype(np.uint8)
        cv2.imwrite(str(folder / f"photo{row}.png"), cv2.applyColorMap(shades, row))
    made = make_output(
        str(root),
        tasks=("seg", "depth", "normal"),
        rows=(8,),
        uri=lambda _file, row: str(folder / f"photo{row}.png"),
        status=lambda _task, row: STATUSES.get(row, "ok"),
    )
    (folder / "photo5.png").unlink()

    texts = {"image_id": HOSTILE, "uri": f"s3://b/{HOSTILE}", "error": HOSTILE}

    def poison(rows: list[module.Row]) -> list[module.Row]:
        return [{**row, **texts} if row["row"] in (4, 6) else row for row in rows]

    for task in made.records:
        made.rewrite(task, 0, poison)
    return made


@pytest.fixture(scope="module")
def page_file(output: Output, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preview(output.uri, tmp_path_factory.mktemp("out") / "page.html")


class Opened:
    """A page in the browser, what it asked for, and what it complained of."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def visible(self) -> list[str]:
        return [title.inner_text().split()[0] for title in self.page.query_selector_all("article:not([hidden]) h2")]


@pytest.fixture(params=[PHONE, DESK], ids=["phone", "desk"])
def opened(browser: Browser, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    context = browser.new_context(viewport=request.param, offline=True)
    found = Opened(context.new_page())
    found.page.goto(page_file.as_uri())
    yield found
    context.close()


def test_it_opens_without_a_network_and_asks_for_nothing(opened: Opened) -> None:
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.complaints == []
    assert len(opened.page.query_selector_all("article")) == 8


def test_every_picture_is_drawn(opened: Opened) -> None:
    """Rows 0, 1, 6, 7 have an image and three maps, 2 and 3 an image, 5 maps. The uri of 6 is read in the manifest."""
    sizes: Any = opened.page.eval_on_selector_all(
        "article img",
        "async images => { for (const i of images) { i.loading = 'eager'; await i.decode() }"
        " return images.map(i => i.naturalWidth) }",
    )
    assert len(sizes) == 4 * 4 + 2 + 3
    assert sorted(sizes) == [9] * 3 + [300] * 18  # the size of a picture that is gone is that of its label


def test_nothing_sticks_out_of_the_screen_and_text_can_be_read(opened: Opened) -> None:
    page = opened.page
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes: Any = page.eval_on_selector_all(
        "main :is(h2, p, img, figcaption, .missing), .controls *",
        "all => all.map(e => e.getBoundingClientRect()).filter(r => r.width).map(r => [r.left, r.right])",
    )
    assert len(boxes) > 40
    assert [box for box in boxes if box[0] < 0 or box[1] > width] == []
    sizes: Any = page.eval_on_selector_all(
        "main :is(h2, p, figcaption, dd, dt, li)", "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    columns: Any = page.eval_on_selector("article .tiles", "e => getComputedStyle(e).gridTemplateColumns")
    assert len([size for size in columns.split() if size != "0px"]) == (2 if width == PHONE["width"] else 4)


def test_what_is_missing_is_drawn_as_such(opened: Opened) -> None:
    reasons = [found.inner_text() for found in opened.page.query_selector_all(".missing")]
    assert len(reasons) == 3 + 3 + 1 + 1
    assert any(re.search(r"unreadable: JPEG ends after 17 bytes", reason) for reason in reasons)
    assert any(re.search(r"can't be shown: .*photo5.png: no such file", reason, re.S) for reason in reasons)


def test_the_filter_box_leaves_what_matches(opened: Opened) -> None:
    page = opened.page
    page.fill("#filter", "PHOTO1")
    assert opened.visible() == ["photo1.png"]
    assert page.inner_text("#count") == "1 of 8"
    page.fill("#filter", "photo unreadable")
    assert opened.visible() == ["photo2.png"]
    page.fill("#filter", "torso ok photo7")
    assert opened.visible() == ["photo7.png"]
    page.fill("#filter", "nothing like this")
    assert opened.visible() == [] and page.is_visible("#nothing")
    page.fill("#filter", "")
    assert len(opened.visible()) == 8 and not page.is_visible("#nothing")


def test_a_picture_is_enlarged_and_closed_again(opened: Opened) -> None:
    page = opened.page
    page.click(".picture >> nth=1")
    box = page.locator("#large img").bounding_box()
    assert box is not None and box["width"] > 300
    page.click("#large button")
    assert not page.is_visible("#large")


def test_scores_statuses_and_the_legend_are_on_it(opened: Opened) -> None:
    page = opened.page
    assert page.inner_text("article:first-child .tiles").count("0.75") == 1  # confidence
    assert {found.inner_text() for found in page.query_selector_all("h2 .status")} == {
        "ok", "unreadable", "no_person", "rejected",
    }  # fmt: skip
    page.click("summary")
    names = [found.inner_text() for found in page.query_selector_all(".swatches li")]
    assert len(names) == 28 and "Torso" in names


def test_hostile_texts_are_shown_and_not_run(opened: Opened) -> None:
    """They stand in ids, uris and errors; nothing of them became an element or ran."""
    page = opened.page
    assert page.evaluate("window.pwned") is None
    assert HOSTILE in page.inner_text("article:nth-child(5)")
    assert "49" not in page.inner_text("article:nth-child(5) .place")
    assert len(page.query_selector_all("script")) == 1
    assert page.query_selector_all("[onerror], [src=x]") == []


def test_a_script_that_were_injected_all_the_same_would_not_run(
    browser: Browser, page_file: Path, tmp_path: Path
) -> None:
    """The page's policy, tried on a page whose escaping is broken by hand."""
    broken = tmp_path / "broken.html"
    evil = "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'><img src='file:///etc/passwd'>"
    broken.write_text(page_file.read_text().replace("<main", f"{evil}<main"))
    context = browser.new_context()
    opened = Opened(context.new_page())
    opened.page.goto(broken.as_uri())
    assert opened.page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in text for text in opened.complaints)
    assert opened.page.inner_text("#count") == "8 of 8"
    context.close()


def test_random_weights_are_named_on_the_page(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg", "depth"), rows=(1,), random=True)
    text = preview(made.uri, tmp_path / "page.html").read_text()
    assert re.search(r"random weights, so these mean nothing: seg,\s+depth\.", text)
    assert "default-src 'none'" in text and text.isascii()


def test_an_unknown_suffix_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"x.pdf: unknown suffix; expected .png"):
        preview("nowhere", tmp_path / "x.pdf")
