"""Figures of losses and of sweeps: properties of all figures, the contents of each, and image files."""

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polylosses import catalogue, plot, theme
from polylosses.polynomial import Polynomial
from polylosses.tune import figures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="neither chromium nor google-chrome is on PATH")

TWO = (0.0, 2.0)
TWELVE = (-1.0, -0.5, 0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0)
SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
# The first bytes of each format.
MAGIC = {
    ".png": b"\x89PNG",
    ".svg": b"<svg",
    ".pdf": b"%PDF",
    ".jpg": b"\xff\xd8",
    ".jpeg": b"\xff\xd8",
    ".webp": b"RIFF",
}


def named(epsilon: float) -> str:
    return f"poly1({epsilon:g})" if epsilon else "cross-entropy"


def poly1s(epsilons: Sequence[float]) -> dict[str, Polynomial]:
    return {named(e): catalogue.poly1(e) for e in epsilons}


def scores_and_table(
    epsilons: Sequence[float], repeats: int = 5, level: float = 0.9
) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(0)
    scores = pd.DataFrame(
        {
            "loss": np.repeat([named(e) for e in epsilons], repeats),
            "repeat": np.tile(np.arange(repeats), len(epsilons)),
            "score": level + random.normal(0, 0.01, repeats * len(epsilons)),
        }
    )
    mean = scores.groupby("loss", sort=False)["score"].mean()
    difference = mean - mean.loc["cross-entropy"]
    half = np.where(mean.index == "cross-entropy", 0.0, 0.01 if repeats > 1 else math.nan)
    table = pd.DataFrame(
        {
            "score": mean,
            "difference": difference,
            "difference_low": difference - half,
            "difference_high": difference + half,
            "learning rate": 0.01,
        }
    ).reset_index()
    return scores, table


def training(epsilons: Sequence[float], epochs: int = 20) -> pd.DataFrame:
    return pd.DataFrame(
        [(named(e), epoch, epoch / (epochs + 2)) for e in epsilons for epoch in range(1, epochs + 1)],
        columns=["loss", "epoch", "mean_p_t"],
    )


def bins(epsilons: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (named(e), kind, c, c - 0.05, rows)
            for e in epsilons
            for kind in ("softmax", "poly_softmax")
            for c, rows in ((0.3, 5), (0.6, 50), (0.9, 500))
        ],
        columns=["loss", "probabilities", "confidence", "accuracy", "rows"],
    )


def recall(epsilons: Sequence[float], labels: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (label, 10 * (i + 1), named(e), 0.5 + 0.4 * i / len(labels))
            for e in epsilons
            for i, label in enumerate(labels)
        ],
        columns=["label", "training_rows", "loss", "recall"],
    )


def metric(epsilons: Sequence[float], label: str = "accuracy", *, better: bool = True, **options: Any) -> Any:
    scores, table = scores_and_table(epsilons, **options)
    return figures.metric_against_loss(scores, table, poly1s(epsilons), label, better, parameters=["learning rate"])


THREE = {"cross-entropy": catalogue.cross_entropy(), "focal(2)": catalogue.focal(2.0), "poly1(2)": catalogue.poly1(2.0)}


def metric_of(losses: dict[str, Polynomial], **options: Any) -> Any:
    """The metric against losses that are not all Poly-1."""
    scores, table = scores_and_table(range(len(losses)))
    names = dict(zip((named(e) for e in range(len(losses))), losses, strict=True))
    scores, table = (frame.assign(loss=frame["loss"].map(names)) for frame in (scores, table))
    return figures.metric_against_loss(scores, table, losses, "score", **options)


Make = Callable[[], Any]
CASES: dict[str, Make] = {
    "metric, 2 epsilons": lambda: metric(TWO),
    "metric, 12 epsilons": lambda: metric(TWELVE),
    "metric, one repeat": lambda: metric(TWO, repeats=1),
    "metric, confirmed": lambda: figures.metric_against_loss(
        *scores_and_table(TWO),
        poly1s(TWO),
        "accuracy",
        confirmed={"loss": "poly1(2)", "difference": 0.1, "low": -0.1, "high": 0.2},
    ),
    "metric, log-loss": lambda: metric(TWO, "log-loss", better=False, level=2.3),
    "metric, losses": lambda: metric_of(THREE, highlighted=["cross-entropy", "focal(2)"]),
    "training, 2 epsilons": lambda: figures.true_probability_over_training(training(TWO), poly1s(TWO)),
    "training, 12 epsilons": lambda: figures.true_probability_over_training(training(TWELVE), poly1s(TWELVE)),
    "training, one epoch": lambda: figures.true_probability_over_training(training(TWO, epochs=1), poly1s(TWO)),
    "reliability, 2 epsilons": lambda: figures.reliability(bins(TWO), poly1s(TWO)),
    "reliability, 12 epsilons": lambda: figures.reliability(bins(TWELVE), poly1s(TWELVE)),
    "recall, 2 classes": lambda: figures.recall_by_class(recall(TWELVE, ["no", "yes"]), poly1s(TWELVE)),
    "recall, 100 classes": lambda: figures.recall_by_class(
        recall(TWO, [f"species {i}" for i in range(100)]), poly1s(TWO)
    ),
    "polynomials, one": lambda: plot.polynomials({"0": catalogue.cross_entropy()}),
    "polynomials, 12 epsilons": lambda: figures.losses_themselves(poly1s(TWELVE)),
}
every_figure = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())


def axes(figure: Any) -> dict[str, Any]:
    """The axes that traces use, by their name in the layout."""
    used = {(axis, getattr(trace, axis) or axis[0]) for trace in figure.data for axis in ("xaxis", "yaxis")}
    return {axis + name[1:]: figure.layout[axis + name[1:]] for axis, name in used}


def is_epsilon(name: str) -> bool:
    try:
        float(name)
    except (TypeError, ValueError):
        return False
    return True


def colours(figure: Any) -> set[tuple[str, str]]:
    """The pairs of epsilon and colour in a figure. The name of a trace is its epsilon."""
    pairs = set()
    for trace in figure.data:
        if is_epsilon(trace.name):
            pairs |= {(trace.name, tone) for tone in (trace.marker.color, trace.line.color) if tone is not None}
    return pairs


@every_figure
def test_every_axis_has_a_title(make: Make) -> None:
    found = axes(make())
    assert len(found) >= 2
    assert all(axis.title.text for axis in found.values()), found


@every_figure
def test_what_is_drawn_lies_within_the_ranges(make: Make) -> None:
    figure = make()
    for trace in figure.data:
        for axis in ("xaxis", "yaxis"):
            limits = axes(figure)[axis + (getattr(trace, axis) or axis[0])[1:]].range
            drawn = [v for v in trace[axis[0]] if v is not None]
            if limits is not None and not (axis == "yaxis" and figure.layout.yaxis.title.text == "loss L(p)"):
                assert min(limits) <= min(drawn, default=limits[0])
                assert max(drawn, default=limits[1]) <= max(limits)


@every_figure
def test_the_ground_is_transparent_and_there_is_no_title(make: Make) -> None:
    figure = make()
    look = figure.layout.template.layout
    assert look.paper_bgcolor == look.plot_bgcolor == "rgba(0,0,0,0)"
    assert figure.layout.title.text is None


def test_an_epsilon_has_one_colour_in_all_figures() -> None:
    pairs = set[tuple[str, str]]().union(*(colours(make()) for make in CASES.values()))
    assert {name for name, _ in pairs} == {f"{epsilon:g}" for epsilon in TWELVE}
    assert pairs == {(f"{epsilon:g}", theme.colour(epsilon)) for epsilon in TWELVE}


@every_figure
def test_every_figure_tells_the_epsilons_apart_by_colour(make: Make) -> None:
    pairs = colours(make())
    assert len({tone for _, tone in pairs}) == len(pairs)


def luminance(tone: str) -> float:
    parts = [int(tone[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("epsilon", [*np.linspace(-6, 6, 49), *np.geomspace(6, 1000, 30)])
@pytest.mark.parametrize("ground", ["#ffffff", "#15181d"])
def test_colours_are_readable_on_both_grounds(epsilon: float, ground: str) -> None:
    low, high = sorted((luminance(theme.colour(epsilon)), luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= 2.9


def test_metric_bars_are_the_paired_interval_around_the_mean_of_epsilon_0() -> None:
    scores, table = scores_and_table((0.0, -1.0, 2.0))
    table.loc[table["loss"] == "poly1(2)", "difference_high"] += 0.02
    figure = figures.metric_against_loss(
        scores, table, poly1s((-1.0, 0.0, 2.0)), "accuracy", parameters=["learning rate"]
    )
    assert figure.layout.xaxis.ticktext == ("-1", "0", "2")
    row = table.set_index("loss").loc["poly1(2)"]
    base = table.set_index("loss")["score"].loc["cross-entropy"]
    (mean,) = [t for t in figure.data if t.name == "2" and t.error_y.array is not None]
    assert mean.y[0] == row["score"]
    assert mean.y[0] + mean.error_y.array[0] == pytest.approx(base + row["difference_high"])
    assert mean.y[0] - mean.error_y.arrayminus[0] == pytest.approx(base + row["difference_low"])
    assert "learning rate 0.01" in mean.hovertemplate
    (line,) = [t for t in figure.data if t.name == "epsilon = 0: plain cross-entropy"]
    assert set(line.y) == {base}
    (dots,) = [t for t in figure.data if t.name == "2" and t.error_y.array is None]
    assert list(dots.y) == scores[scores["loss"] == "poly1(2)"]["score"].tolist()


def test_metric_draws_no_bar_at_epsilon_0_nor_for_an_unknown_interval() -> None:
    scores, table = scores_and_table(TWO)
    table.loc[table["loss"] == "poly1(2)", ["difference_low", "difference_high"]] = math.nan
    figure = figures.metric_against_loss(scores, table, poly1s(TWO), "accuracy")
    assert all(t.error_y.array is None for t in figure.data)


def test_losses_without_an_epsilon_are_named_from_the_top_down() -> None:
    names = list(THREE)
    names[1] = "<b>" + "long " * 20
    losses = dict(zip(names, THREE.values(), strict=True))
    figure = metric_of(losses, confirmed={"loss": names[1], "difference": 0.1, "low": 0.05, "high": 0.2})
    assert figure.layout.yaxis.range == (2.5, -0.5)
    assert figure.layout.yaxis.ticktext[::2] == ("cross-entropy", "poly1(2)")
    assert figure.layout.yaxis.ticktext[1].startswith("&lt;b&gt;long")
    assert len(figure.layout.yaxis.ticktext[1]) < 50
    wide, narrow = (len(figure.layout.meta[name]["yaxis.ticktext"][1]) for name in ("wide", "narrow"))
    assert narrow < wide - 10
    (diamond,) = [t for t in figure.data if t.marker.symbol == "diamond"]
    assert diamond.x[0] - diamond.error_x.arrayminus[0] == pytest.approx(figure.data[0].x[0] + 0.05)
    assert round(diamond.y[0]) == 1
    looks = [t.marker.color for t in figure.data if t.name == "poly1(2)"]
    assert looks == [theme.colour(2)] * 2


def test_of_many_losses_those_highlighted_are_in_colour_and_in_front() -> None:
    losses = THREE | {f"focal({g})": catalogue.focal(g) for g in (3.0, 4.0)}
    figure = plot.polynomials(losses, ["cross-entropy", "focal(2)"])
    assert [t.name for t in figure.data[:-1:3]][-2:] == ["cross-entropy", "focal(2)"]
    assert {t.name for t in figure.data if t.showlegend is not False} == {
        "cross-entropy",
        "focal(2)",
        "3 others (their names when pointed at)",
    }
    assert {t.line.color for t in figure.data if t.name == "poly1(2)"} == {theme.GREY}
    assert figures.highlighted_of(losses, "focal(2)") == ()
    many = {f"focal({g})": catalogue.focal(g) for g in range(1, 13)}
    assert figures.highlighted_of(THREE | many, "focal(2)") == ("cross-entropy", "focal(2)")


def test_metric_axis_has_the_epsilons_evenly_spaced_and_says_what_is_better() -> None:
    figure = metric(TWELVE, "log-loss", better=False)
    assert figure.layout.xaxis.ticktext == tuple(f"{e:g}" for e in TWELVE)
    assert figure.layout.xaxis.tickvals == tuple(range(12))
    assert "lower is better" in figure.layout.yaxis.title.text


def test_recall_has_the_most_frequent_class_first_and_a_gap_where_there_are_no_rows() -> None:
    frame = recall(TWO, ["rare", "common"])
    frame.loc[(frame["label"] == "rare") & (frame["loss"] == "poly1(2)"), "recall"] = math.nan
    figure = figures.recall_by_class(frame, poly1s(TWO))
    assert figure.layout.xaxis.ticktext == ("common (20)", "rare (10)")
    (two,) = [t for t in figure.data if t.name == "2"]
    assert two.text == ("common", "rare")
    assert two.y[0] == 0.7
    assert math.isnan(two.y[1])


def test_labels_are_shown_as_they_are_and_long_ones_shortened() -> None:
    figure = figures.recall_by_class(recall(TWO, ["<b>a</b> & $x$ %{y}", "x" * 500]), poly1s(TWO))
    long, odd = figure.layout.xaxis.ticktext
    assert odd == "&lt;b&gt;a&lt;/b&gt; &amp; &#36;x&#36; &#37;{y} (10)"
    assert len(long) < 40
    assert figure.data[0].text[0] == "x" * 500


def test_reliability_leaves_out_empty_bins() -> None:
    frame = bins(TWO)
    frame.loc[frame["confidence"] == 0.3, ["rows", "accuracy"]] = (0, math.nan)
    assert {len(t.x) for t in figures.reliability(frame, poly1s(TWO)).data} == {2}


def test_the_area_of_a_bin_is_its_share_of_rows() -> None:
    sizes = np.array(figures.reliability(bins(TWO), poly1s(TWO)).data[-1].marker.size)
    assert ((sizes - 4) / 12) ** 2 == pytest.approx([0.01, 0.1, 1.0])


def test_every_loss_of_the_catalogue_can_be_drawn_and_told_apart() -> None:
    figure = plot.polynomials({name: make() for name, make in catalogue.ALL.items()})
    looks = {t.name: (t.line.color, t.line.dash) for t in figure.data}
    # Symmetric cross-entropy is scaled, and so is not a Poly-1. poly_n() without arguments is cross-entropy.
    assert looks.pop("poly_n") == looks["cross_entropy"] == (theme.colour(0), "dash")
    assert len(set(looks.values())) == len(looks) == len(catalogue.ALL) - 1


def test_polynomials_draws_loss_factor_and_series() -> None:
    loss, factor, series = plot.polynomials({"a": catalogue.poly1(2.0)}).data
    assert loss.x[0] == 0.005
    assert loss.y[0] == pytest.approx(-math.log(0.005) + 2 * 0.995)
    assert factor.y[-1] == pytest.approx(3.0)
    assert series.y == pytest.approx([3.0, *(1 / j for j in range(2, 9))])


def test_a_large_epsilon_does_not_flatten_the_others() -> None:
    figure = plot.polynomials(poly1s((0.0, 40.0)))
    assert figure.layout.yaxis.range[1] < 12


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.polynomials({}), "at least one polynomial"),
        (
            lambda: figures.true_probability_over_training(training(TWO).drop(columns="epoch"), poly1s(TWO)),
            "loss, epoch, mean_p_t",
        ),
        (
            lambda: figures.true_probability_over_training(training(TWO).iloc[:0], poly1s(TWO)),
            "training has no rows",
        ),
        (
            lambda: figures.true_probability_over_training(training(TWO), poly1s((0.0, 1.0))),
            r"losses has no 'poly1\(2\)'; it has cross-entropy, poly1\(1\)",
        ),
        (lambda: figures.reliability(bins(TWO).replace("softmax", "Softmax"), poly1s(TWO)), "got 'Softmax'"),
        (lambda: figures.recall_by_class(pd.DataFrame(), poly1s(TWO)), "got none"),
        (
            lambda: figures.metric_against_loss(
                scores_and_table(TWO)[0], scores_and_table(TWO)[1].iloc[1:], poly1s(TWO), "accuracy"
            ),
            "no row for cross-entropy",
        ),
        (
            lambda: figures.metric_against_loss(
                scores_and_table(TWELVE)[0], scores_and_table(TWO)[1], poly1s(TWELVE), "accuracy"
            ),
            r"no row for poly1\(-1\); it has cross-entropy, poly1\(2\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(draw: Make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def check_image(suffix: str, folder: Path, dark: bool = False) -> None:
    folder.mkdir()
    path = folder / f"figure{suffix}"
    plot.write(plot.polynomials(poly1s(TWO)), path, dark=dark)
    assert path.read_bytes().startswith(MAGIC[suffix]), suffix
    assert list(folder.iterdir()) == [path]


@pytest.mark.slow
@needs_chromium
def test_write_image(tmp_path: Path) -> None:
    check_image(".png", tmp_path / "png", dark=True)


@pytest.mark.slow
@needs_chromium
@pytest.mark.filterwarnings("ignore:The kopts argument is ignored")
def test_write_image_in_every_format(tmp_path: Path) -> None:
    """One browser for all images, since starting it takes longer than writing six images."""
    kaleido = import_module("kaleido")
    kaleido.start_sync_server(mathjax=False)
    try:
        for suffix in SUFFIXES:
            check_image(suffix, tmp_path / suffix)
    finally:
        kaleido.stop_sync_server()


def test_write_html_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.HTML"
    path.write_text("old")
    plot.write(plot.polynomials(poly1s(TWO)), str(path))
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [path]


def test_no_text_ends_the_script_of_a_page() -> None:
    page = theme.document("title", "", [plot.polynomials(poly1s(TWO)).update_layout(meta="</script><b>")])
    assert page.count("</script>") == theme.document("title", "", []).count("</script>")
    assert "\\u003c" in page


@pytest.mark.parametrize("name", ["figure.gif", "figure", "figure.html.zip"])
def test_write_says_which_suffixes_there_are(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"\.html, \.png.*{name}"):
        plot.write(plot.polynomials(poly1s(TWO)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_write_to_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no directory .*nowhere"):
        plot.write(plot.polynomials(poly1s(TWO)), tmp_path / "nowhere" / "figure.html")
    assert not list(tmp_path.iterdir())


def test_write_without_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(RuntimeError, match=r"needs Chrome or Chromium.*\.html"):
        plot.write(plot.polynomials(poly1s(TWO)), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "figure.html"
    target.mkdir()
    with pytest.raises(OSError, match=r"figure\.html"):
        plot.write(plot.polynomials(poly1s(TWO)), target)
    assert list(tmp_path.iterdir()) == [target]


def test_without_plotly_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['plotly'] = None; import polylosses.plot"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: polylosses.plot needs plotly: pip install 'polylosses[tune]'" in run.stderr
