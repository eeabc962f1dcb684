"""The HTML report, as text and in a browser."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright
from sklearn.datasets import make_blobs

from polylosses import focal, plot
from polylosses.tune import Trial, batched, figures, report, study, sweep
from test_plot import CHROMIUM, TWELVE, TWO, bins, metric, needs_chromium, poly1s, recall, training

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<b>bold</b>",
    "<!--<script>",
    "\"'q'\" & &lt; $x$ %{y}",
    "Grüße 类别 🙂",
    "x" * 300,
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # plotly.js takes a stack trace, for which V8 would parse all its 5 MB again to find line numbers.
    "--js-flags=--no-enable-lazy-source-positions",
]


def make_page(epsilons: Sequence[float] = TWELVE, labels: Sequence[str] = ("no", "yes"), text: str = "digits") -> str:
    losses = poly1s(epsilons)
    return report.page(
        title=text,
        verdict="better",
        sentence=f"epsilon = 2 gains 1.2 points on {text}.",
        table=pd.DataFrame({"epsilon": [f"{e:g}" for e in epsilons], text: text}),
        figures={
            f"Accuracy of {text}": (metric(epsilons, text), text),
            "Training": (figures.true_probability_over_training(training(epsilons), losses), "Higher is surer."),
            "Reliability": (figures.reliability(bins(epsilons), losses), "On the diagonal, the model is right."),
            "Recall": (figures.recall_by_class(recall(epsilons, labels), losses), "The most frequent first."),
            "Losses": (plot.polynomials(losses | {text: losses["poly1(2)"]}), "Steeper is stronger."),
        },
        settings={
            "seed": 0,
            "learning rates": [0.01, 0.1],
            "versions": {"torch": "2.4", text: text},
            text: text,
            "read": ["separated by semicolons", text],
        },
        notes=["Epsilon depends on the task.", text],
        columns=pd.DataFrame(
            {"name": ["size", text], "read": ["number", text], "missing": [3, 0], "example": text, "warning": text}
        ),
    )


@cache
def ordinary_page() -> str:
    return make_page(TWO)


class Tags(HTMLParser):
    """Collects all tags, and checks that each is closed in the right place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def visible(text: str) -> str:
    """The page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)


def test_the_page_is_semantic_html_in_the_order_of_importance() -> None:
    text = ordinary_page()
    tags = Tags(text)
    assert not tags.open
    names = [tag for tag, _ in tags.seen]
    assert names.count("h1") == names.count("main") == 1
    assert names.count("details") == names.count("summary") == 2
    assert names.count("figure") == names.count("figcaption") == 5
    assert all("scope" in attributes for tag, attributes in tags.seen if tag == "th")
    shown = visible(text)
    parts = [
        "<h1>",
        "Better</strong>:",
        "Accuracy of digits",
        "In numbers",
        "<summary>How your columns were read",
        "<li>separated by semicolons</li>",
        '<th scope="row">size</th><td>number</td><td>3</td>',
        "Training",
        "Reliability",
        "keep in mind",
        "Settings",
    ]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    assert "<td>0.01, 0.1</td>" in shown
    assert "<td>torch 2.4, digits digits</td>" in shown
    assert shown.count("separated by semicolons") == 1


def test_nothing_in_the_page_points_outside() -> None:
    text = ordinary_page()
    assert not [attributes for _, attributes in Tags(text).seen if {"src", "href"} & set(attributes)]
    assert "default-src 'none'" in text
    assert text.count("<script>") == 2  # plotly.js, and the script that draws the figures


@pytest.mark.parametrize("label", HOSTILE)
def test_what_users_name_is_escaped(label: str) -> None:
    ordinary, hostile = ordinary_page(), make_page(TWO, [label, "other"], label)
    assert [tag for tag, _ in Tags(hostile).seen] == [tag for tag, _ in Tags(ordinary).seen]
    assert hostile.count("</script>") == ordinary.count("</script>")
    assert "<b>" not in visible(hostile)


@pytest.mark.parametrize(
    ("verdict", "sentence", "shown"),
    [
        ("better", "It is better.", 'It is <strong class="better">better</strong>.'),
        ("worse", "It is worse & bad.", 'It is <strong class="worse">worse</strong> &amp; bad.'),
        ("worse", "A loss.", '<strong class="worse">Worse</strong>: A loss.'),
        ("no gain", "No gain at all.", '<strong class="undecided">No gain</strong> at all.'),
    ],
)
def test_the_verdict_stands_out_in_its_sentence(verdict: str, sentence: str, shown: str) -> None:
    figure = plot.polynomials(poly1s(TWO))
    text = report.page(
        title="t", verdict=verdict, sentence=sentence, table=pd.DataFrame(), figures={"f": (figure, "")}, settings={}
    )
    assert f'<p class="verdict">{shown}</p>' in text


def test_columns_are_shown_without_sentences_on_the_file() -> None:
    columns = pd.DataFrame({"name": ["size"], "read": ["number"], "missing": [0], "example": ["1"], "warning": [""]})
    figures_ = {"f": (plot.polynomials(poly1s(TWO)), "")}
    text = report.page(
        title="t",
        verdict="worse",
        sentence="s",
        table=pd.DataFrame(),
        figures=figures_,
        settings={},
        columns=columns,
    )
    assert '<th scope="col">read as</th>' in text
    assert "<li>" not in visible(text)


def test_without_notes_and_columns_there_are_no_headings_for_them() -> None:
    figure = plot.polynomials(poly1s(TWO))
    text = report.page(
        title="t", verdict="worse", sentence="s", table=pd.DataFrame(), figures={"f": (figure, "")}, settings={}
    )
    assert "keep in mind" not in visible(text)
    assert "columns were read" not in visible(text)


def test_without_figures_there_is_no_page() -> None:
    with pytest.raises(ValueError, match="got none in figures"):
        report.page(title="t", verdict="worse", sentence="s", table=pd.DataFrame(), figures={}, settings={})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(
    browser: Browser, path: Path, text: str, width: int = 1200, scheme: Literal["light", "dark"] = "light"
) -> Page:
    """Opens the page and waits until all figures are drawn. Console messages, errors and requests fail the test."""
    path.write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def on_dialog(dialog: Dialog) -> None:
        complaints.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", on_dialog)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    # newPlot draws the figure, and a relayout then sets its style.
    page.wait_for_function("() => [...document.querySelectorAll('.plot')].every(p => p.layout?.dragmode)")
    page.wait_for_timeout(200)
    assert [url for url in requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]
    assert not complaints
    return page


DRAWN = """() => [...document.querySelectorAll('.plot')].map(p => {
    const box = p.querySelector('.main-svg').getBoundingClientRect();
    return {width: box.width, height: box.height, traces: p.querySelectorAll('.scatterlayer .trace').length};
})"""


SIZES = """() => [...document.querySelectorAll('.plot')].map(p => {
    const box = p.querySelector('.main-svg').getBoundingClientRect();
    return [box.width, box.height];
})"""
PANELS = "() => ['xaxis', 'xaxis2'].map(axis => document.getElementById('figure-3')._fullLayout[axis].domain)"


def check_fit(page: Page, width: int, epsilons: Sequence[float]) -> None:
    """All five figures fill the window without overflowing. In narrow windows, their panels are stacked."""
    drawn = page.evaluate(DRAWN)
    assert len(drawn) == 5
    for figure in drawn:
        assert 0.75 * min(width, 1000) < figure["width"] < width
        assert figure["height"] > 300
        assert figure["traces"] >= len(epsilons)
    if width < 700:
        assert page.evaluate(PANELS) == [[0, 1], [0, 1]]
    else:
        assert page.evaluate(PANELS)[1][0] > 0.5
    assert page.evaluate("document.documentElement.scrollWidth") == width


def resize(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    least, most = 0.75 * min(width, 1000), width
    page.wait_for_function(f"() => ({SIZES})().every(([width]) => {least} < width && width < {most})")


# One test for all checks of a page, since plotly.js takes seconds to load.
@pytest.mark.slow
@needs_chromium
def test_every_figure_is_drawn_and_fits_the_window_and_follows_it(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path / "report.html", make_page(TWO))
    check_fit(page, 1200, TWO)
    sizes = page.evaluate(SIZES)
    resize(page, 400)
    check_fit(page, 400, TWO)
    resize(page, 1200)
    page.wait_for_function(f"() => JSON.stringify(({SIZES})()) == '{json.dumps(sizes, separators=(',', ':'))}'")
    check_fit(page, 1200, TWO)
    page.close()


@needs_chromium
def test_the_report_of_a_sweep_is_drawn(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "MINIMUM_STEPS", 20)
    X, y = make_blobs(120, centers=len(HOSTILE), random_state=0)
    labels = [HOSTILE[i] for i in y]
    result = sweep(X, labels, epsilons=[1.0, 5.0], learning_rates=[0.01], repeats=2, metric="log_loss", name=HOSTILE[0])
    page = opened(browser, tmp_path / "report.html", result.to_html())
    drawn = page.evaluate(DRAWN)
    assert len(drawn) == 5
    assert min(figure["traces"] for figure in drawn) >= 3
    assert result.sentence in page.inner_text("main")
    columns = page.locator("details", has_text="How your columns were read")
    assert not columns.locator("table").is_visible()
    resize(page, 400)
    columns.locator("summary").click()
    assert columns.locator("tbody tr").count() == 2
    assert columns.locator("table").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.close()


def train(trial: Trial) -> dict[str, float]:
    """Stands for a training, and fails at times."""
    name = sum(map(ord, trial.loss))
    if (trial.seed + name) % 13 == 0:
        raise RuntimeError(HOSTILE[0])
    a, b = np.random.default_rng([trial.seed, name, trial.point]).normal(0.001 * (name % 7), 0.01, 2)
    return {"validation": a, "test": b}


def check_study(browser: Browser, path: Path, arms: int, scheme: Literal["light", "dark"]) -> None:
    losses = {text[:60]: focal(k + 1.0) for k, text in enumerate(HOSTILE[: arms - 1])}
    losses |= {f"focal({k})": focal(float(k)) for k in range(len(losses) + 1, arms)}
    parameters: dict[str, Any] = {
        "rate": "1e-4:1e-1:log",
        HOSTILE[1]: [*HOSTILE, None],
        "width": "16:256",
        "x": "0:0.5",
    }
    result = study(train, losses=losses, parameters=parameters, points=2, repeats=2)
    page = opened(browser, path / "report.html", result.to_html(), 1200, scheme)
    assert len(page.evaluate(DRAWN)) == len(result.figures) == 5
    assert [box["width"] < 1200 and box["height"] > 300 for box in page.evaluate(DRAWN)] == [True] * 5
    assert page.evaluate(CONTRAST)[1] >= 4.5
    assert page.locator("#figure-1 .ytick text").count() == len(result.table)
    assert result.sentence in page.inner_text("main")
    assert page.locator("b").count() == 0
    # Two panels in each of two rows, then all below one another.
    columns = (
        "() => [1, 2, 3, 4].map(k => document.getElementById('figure-3')._fullLayout[`xaxis${k > 1 ? k : ''}`].domain)"
    )
    first, second, third, fourth = page.evaluate(columns)
    assert first == third
    assert second == fourth
    assert first[1] < second[0]
    resize(page, 360)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate(columns) == [[0, 1]] * 4
    page.close()


@pytest.mark.slow
@needs_chromium
def test_the_report_of_a_study_is_drawn_in_light_and_dark_and_narrow(browser: Browser, tmp_path: Path) -> None:
    check_study(browser, tmp_path, 3, "light")
    check_study(browser, tmp_path, 30, "dark")


@pytest.mark.slow
@needs_chromium
def test_hostile_labels_are_only_shown(browser: Browser, tmp_path: Path) -> None:
    text = " ".join(HOSTILE)
    page = opened(browser, tmp_path / "report.html", make_page(TWELVE, HOSTILE, text))
    check_fit(page, 1200, TWELVE)
    ticks = page.locator("#figure-4 .xtick text").all_text_contents()
    shown = [label if len(label) <= 24 else label[:23] + "…" for label in HOSTILE]
    assert sorted(ticks) == sorted(f"{label} ({10 * (i + 1)})" for i, label in enumerate(shown))
    assert text[:31] + "…" in page.locator("#figure-5 .legendtext").all_text_contents()
    assert page.locator("h1").text_content() == text == page.title()
    assert page.locator("b").count() == 0
    resize(page, 400)
    check_fit(page, 400, TWELVE)
    page.close()


CONTRAST = """() => {
    const light = tone => {
        const [r, g, b] = tone.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const ground = getComputedStyle(document.body).backgroundColor;
    const written = [
        ...[...document.querySelectorAll('h1, h2, p, strong, th, td, figcaption, li, summary')].map(e => [e, 'color']),
        ...[...document.querySelectorAll('.plot text')].map(e => [e, 'fill']),
    ];
    const ratio = tone => Math.max(light(tone), light(ground)) / Math.min(light(tone), light(ground));
    return [ground, Math.min(...written.map(([e, property]) => ratio(getComputedStyle(e)[property])))];
}"""


@pytest.mark.slow
@needs_chromium
def test_light_and_dark_follow_the_reader(browser: Browser, tmp_path: Path) -> None:
    page = opened(browser, tmp_path / "report.html", make_page(TWO), 400)
    check_fit(page, 400, TWO)
    grounds = []
    for scheme, ink, width in (("light", "#1f2328", 400), ("dark", "#e6e9ee", 1200), ("light", "#1f2328", 1200)):
        resize(page, width)
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.wait_for_function(
            f"() => [...document.querySelectorAll('.plot')].every(p => p._fullLayout.font.color == '{ink}')"
        )
        page.wait_for_timeout(200)
        ground, contrast = page.evaluate(CONTRAST)
        grounds.append(ground)
        assert contrast >= 4.5, scheme
    assert grounds == ["rgb(255, 255, 255)", "rgb(21, 24, 29)", "rgb(255, 255, 255)"]
    page.close()


@pytest.mark.slow
@needs_chromium
def test_a_figure_written_to_html_is_drawn(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "figure.html"
    plot.write(plot.polynomials(poly1s(TWELVE)), path)
    page = opened(browser, path, path.read_text(encoding="utf-8"))
    (figure,) = page.evaluate(DRAWN)
    assert figure["width"] > 900
    assert figure["traces"] == 3 * len(TWELVE)
    page.close()
