"""The pictures: plain functions from data to a plotly figure, and :func:`write` for a file.

An epsilon has the same colour in every figure, whatever else is drawn; epsilon = 0 is always grey and dashed. The
figures have a transparent background and no title. They carry the light look; :func:`write` and :func:`document` turn
them dark where that is wanted.
"""

import html
import itertools
import math
import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polylosses.polynomial import Polynomial

try:
    import plotly.io
    from plotly.graph_objects import Figure
    from plotly.offline import get_plotlyjs
except ImportError as error:
    raise ImportError("polylosses.plot needs plotly: pip install 'polylosses[tune]'") from error

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "colour",
    "document",
    "metric_against_epsilon",
    "polynomials",
    "recall_by_class",
    "reliability",
    "true_probability_over_training",
    "write",
]

_GREY = "#8b8f96"  # epsilon = 0, and whatever belongs to no epsilon

# Colours of some epsilons; others lie in between. All have a contrast of at least 3 to both backgrounds, and neighbours
# differ in lightness too, so that they stay apart with the common forms of colour blindness.
_COLOURS = {
    -5.0: "#7d8a1c",
    -1.0: "#12936a",
    0.3: "#1a9db5",
    1.0: "#3d8fe8",
    2.0: "#6f4bd8",
    5.0: "#d070c8",
    10.0: "#c43a3a",
    40.0: "#c58700",
    200.0: "#8a5a2b",
}

# The page's colours, as CSS variables and in the figures.
_LIGHT = {"ground": "#ffffff", "ink": "#1f2328", "muted": "#59636e", "grid": "#e6e9ed", "line": "#aab1ba"}
_DARK = {"ground": "#15181d", "ink": "#e6e9ee", "muted": "#9da7b3", "grid": "#2a3038", "line": "#555e69"}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

_WIDTH, _HEIGHT = 1000, 420  # pixels; a page takes the height only
_IMAGES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def colour(epsilon: float) -> str:
    """The colour of an epsilon, as ``#rrggbb``: in every figure the same, readable on white and on dark.

    Example:
        >>> colour(0), colour(1), colour(40)
        ('#8b8f96', '#3d8fe8', '#c58700')
    """
    if epsilon == 0:
        return _GREY
    known = list(_COLOURS)
    if epsilon <= known[0]:
        return _COLOURS[known[0]]
    if epsilon >= known[-1]:
        return _COLOURS[known[-1]]
    right = bisect_right(known, epsilon)
    # asinh is a logarithm that passes through 0: steps of equal ratio look equally far apart.
    start, at, end = (math.asinh(e) for e in (known[right - 1], epsilon, known[right]))
    share = (at - start) / (end - start)
    pairs = zip(_rgb(_COLOURS[known[right - 1]]), _rgb(_COLOURS[known[right]]), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def polynomials(named: Mapping[str, Polynomial]) -> Figure:
    """Losses as functions of the probability ``p`` of the true class: three panels with one legend.

    From left to right: the loss ``L(p)``; the factor by which its gradient differs from cross-entropy's,
    ``-dL / d log p``; and the coefficients of its series in the powers ``j + gamma`` of ``1 - p``, for ``j`` = 1 to 8
    (set side by side, where losses share them). ``p`` starts at 0.005; a loss far above the others leaves the panel.

    Args:
        named: the polynomials by the names that the legend shall give.

    Raises:
        ValueError: ``named`` is empty.

    Example:
        >>> from polylosses import cross_entropy, poly1
        >>> figure = polynomials({"cross_entropy()": cross_entropy(), "poly1(2)": poly1(2.0)})
        >>> figure.layout.xaxis.title.text
        'probability of the true class p'
    """
    if not named:
        raise ValueError("polynomials takes at least one polynomial, such as {'poly1(2)': poly1(2.0)}; got none.")
    figure = _figure()
    grid = [0.005 + 0.995 * (i / 199) ** 2 for i in range(200)]  # denser where the losses bend
    highest, lowest = [], 0.0
    looks = _looks_of_polynomials(named.values())
    for index, ((name, polynomial), (tone, dash)) in enumerate(zip(named.items(), looks, strict=True)):
        loss = [float(polynomial.value(math.log(p), 1 - p)) for p in grid]
        factor = [-float(polynomial.slope(math.log(p), 1 - p)) for p in grid]
        highest.append(max(loss))
        lowest = min(lowest, *loss)
        line = {"color": tone, "dash": dash, "width": 2.5, "simplify": False}
        shared = {"name": _text(_shortened(name, 40)), "legendgroup": str(index), "line": line}
        curve = {**shared, "x": grid, "mode": "lines"}
        figure.add_scatter(**curve, y=loss, hovertemplate="p %{x:.3f}<br>loss %{y:.3f}")
        figure.add_scatter(
            **curve, y=factor, xaxis="x2", yaxis="y2", showlegend=False, hovertemplate="p %{x:.3f}<br>factor %{y:.3f}"
        )
        figure.add_scatter(
            **shared,
            x=[j + _beside(index, len(named)) for j in range(1, 9)],
            y=[float(c) for c in polynomial.series(8)],
            xaxis="x3",
            yaxis="y3",
            showlegend=False,
            mode="markers",
            marker={"color": tone, "size": 7},
            customdata=[j + float(polynomial.gamma) for j in range(1, 9)],
            hovertemplate="coefficient of (1 - p)<sup>%{customdata:.3~g}</sup>: %{y:.3f}",
        )
    # What exceeds twice the lowest loss is cut, so that one large epsilon doesn't flatten all the others.
    if max(highest) > (limit := max(8.0, 2 * min(highest))):
        figure.update_layout(yaxis_range=[lowest, limit])
    _panels(
        figure,
        ("probability of the true class p", "loss L(p)"),
        ("probability of the true class p", "gradient factor -dL/d log p"),
        ("j, in the power (1 - p)<sup>j + gamma</sup>", "series coefficient"),
    )
    unit = {"range": [0, 1], "dtick": 0.2}
    return figure.update_layout(xaxis=unit, xaxis2=unit, xaxis3={"dtick": 1, "range": [0.4, 8.6], "showgrid": False})


def metric_against_epsilon(
    scores: "DataFrame",
    table: "DataFrame",
    metric_label: str,
    higher_is_better: bool = True,
    confirmed: Mapping[str, float] | None = None,
) -> Figure:
    """What the choice of epsilon does to the metric: every repeat, the means and their paired intervals.

    For each epsilon, evenly spaced: on the left a dot a repeat; on the right the mean, with the 95 % interval of the
    paired difference to epsilon = 0, laid around the mean of epsilon = 0. So a bar that keeps clear of the dashed line
    is a difference that the repeats can tell from chance.

    Args:
        scores: columns ``epsilon``, ``repeat``, ``score``: one row for each repeat of each epsilon.
        table: columns ``epsilon``, ``score`` (mean), ``difference``, ``difference_low``, ``difference_high`` (score
            minus that of epsilon = 0, and its interval; nan draws no bar), ``learning_rate``: one row for each
            epsilon, 0 among them.
        metric_label: title of the vertical axis, such as ``"balanced accuracy on validation data"``.
        higher_is_better: said in that title. Default True.
        confirmed: ``epsilon``, ``difference``, ``low`` and ``high`` of a later comparison with epsilon = 0, drawn as a
            diamond farther right, around the same line. Default: none.

    Raises:
        ValueError: a column is missing, a frame is empty, or ``table`` has no row for epsilon = 0 or for an epsilon
            of ``scores``.
    """
    _check("scores", scores, ("epsilon", "repeat", "score"))
    _check("table", table, ("epsilon", "score", "difference", "difference_low", "difference_high", "learning_rate"))
    rows = {float(row["epsilon"]): row for row in table.to_dict("records")}
    missing = {0.0, *_epsilons(scores)} - set(rows)
    if missing:
        raise ValueError(
            f"table has no row for epsilon = {min(missing):g}; it has {', '.join(f'{e:g}' for e in rows)}."
        )
    epsilons = sorted(rows)
    reference = float(rows[0.0]["score"])
    aside = min(0.15, 0.03 * len(epsilons))
    figure = _figure()
    figure.add_scatter(
        name="epsilon = 0: plain cross-entropy",
        x=[-0.5, len(epsilons) - 0.5],
        y=[reference, reference],
        mode="lines",
        line={"color": _GREY, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[i + aside for i in range(len(epsilons))],
        y=[rows[epsilon]["score"] for epsilon in epsilons],
        mode="lines",
        line={"color": _GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    for i, epsilon in enumerate(epsilons):
        row, tone = rows[epsilon], colour(epsilon)
        repeats = scores[scores["epsilon"] == epsilon]
        shared = {"name": f"{epsilon:g}", "showlegend": False, "mode": "markers"}
        figure.add_scatter(
            **shared,
            x=[i - aside] * len(repeats),
            y=repeats["score"].tolist(),
            marker={"color": tone, "size": 8, "opacity": 0.55},
            customdata=repeats["repeat"].tolist(),
            hovertemplate=f"epsilon {epsilon:g}, repeat %{{customdata}}<br>%{{y:.4f}}"
            f"<br>learning rate {row['learning_rate']:.3g}<extra></extra>",
        )
        hover = f"epsilon {epsilon:g}<br>mean %{{y:.4f}}<br>learning rate {row['learning_rate']:.3g}"
        bar = {}
        if epsilon != 0 and math.isfinite(row["difference_low"]) and math.isfinite(row["difference_high"]):
            above, below = row["difference_high"] - row["difference"], row["difference"] - row["difference_low"]
            bar = {"array": [above], "arrayminus": [below], "color": tone, "thickness": 3, "width": 0}
            hover += f"<br>difference {row['difference']:+.4f}"
            hover += f" ({row['difference_low']:+.4f} to {row['difference_high']:+.4f})"
        figure.add_scatter(
            **shared,
            x=[i + aside],
            y=[row["score"]],
            marker={"color": tone, "size": 11},
            error_y=bar,
            hovertemplate=f"{hover}<extra></extra>",
        )
    if confirmed is not None:
        difference, low, high = (confirmed[name] for name in ("difference", "low", "high"))
        tone = colour(confirmed["epsilon"])
        figure.add_scatter(
            name="confirmed on test rows",
            x=[epsilons.index(confirmed["epsilon"]) + 2 * aside],
            y=[reference + difference],
            mode="markers",
            marker={"color": tone, "size": 14, "symbol": "diamond"},
            error_y={"array": [high - difference], "arrayminus": [difference - low], "color": tone, "width": 6},
            hovertemplate=f"epsilon {confirmed['epsilon']:g} on test rows, fresh seeds"
            f"<br>difference {difference:+.4f} ({low:+.4f} to {high:+.4f})<extra></extra>",
        )
    # Entries of the legend that stand for all the colours.
    neutral = {"x": [None], "y": [None], "mode": "markers"}
    figure.add_scatter(**neutral, name="one repeat", marker={"color": _GREY, "size": 8, "opacity": 0.55})
    figure.add_scatter(
        **neutral,
        name="mean, paired 95 % interval",
        marker={"color": _GREY, "size": 11},
    )
    return figure.update_layout(
        xaxis={
            "title": {"text": "epsilon"},
            "tickvals": list(range(len(epsilons))),
            "ticktext": [f"{epsilon:g}" for epsilon in epsilons],
            "range": [-0.5, len(epsilons) - 0.5],
            "showgrid": False,
        },
        yaxis_title_text=f"{_text(metric_label)}<br>({'higher' if higher_is_better else 'lower'} is better)",
    )


def true_probability_over_training(training: "DataFrame") -> Figure:
    """How sure the model gets of its training labels, epoch by epoch: a line for each epsilon.

    Args:
        training: columns ``epsilon``, ``epoch``, ``mean_p_t``: the mean probability that the model gives to the label
            of a training row.

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    _check("training", training, ("epsilon", "epoch", "mean_p_t"))
    figure = _figure()
    few = training["epoch"].nunique() <= 15
    for epsilon in _epsilons(training):
        rows = training[training["epsilon"] == epsilon].sort_values("epoch")
        figure.add_scatter(
            **_series(epsilon),
            x=rows["epoch"].tolist(),
            y=rows["mean_p_t"].tolist(),
            mode="lines+markers" if few else "lines",
            hovertemplate=f"epsilon {epsilon:g}<br>epoch %{{x}}<br>mean probability %{{y:.3f}}<extra></extra>",
        )
    return figure.update_layout(
        legend_title_text="epsilon",
        xaxis={"title": {"text": "epoch"}, "tickformat": "d", **({"dtick": 1} if few else {})},
        yaxis_title_text="mean probability of the training label",
    )


def reliability(bins: "DataFrame") -> Figure:
    """Whether the models' probabilities can be believed: accuracy against confidence, in bins of confidence.

    The left panel has the model's softmax, the right one the same logits through ``poly_softmax``, with a line for
    each epsilon. On the diagonal, the model is right as often as it claims; below it, it claims too much. A dot's area
    is proportional to the rows in its bin.

    Args:
        bins: columns ``epsilon``, ``probabilities`` (``"softmax"`` or ``"poly_softmax"``), ``confidence`` (mean in the
            bin), ``accuracy``, ``rows`` (how many). Bins without rows are left out.

    Raises:
        ValueError: a column is missing, there are no rows, or ``probabilities`` holds another word.
    """
    _check("bins", bins, ("epsilon", "probabilities", "confidence", "accuracy", "rows"))
    panels = ("softmax", "poly_softmax")
    for word in bins["probabilities"].unique():
        if word not in panels:
            raise ValueError(f"probabilities must be 'softmax' or 'poly_softmax' in every row of bins; got {word!r}.")
    bins = bins[bins["rows"] > 0]
    figure = _figure()
    for panel, axes in enumerate(({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2"})):
        figure.add_scatter(
            **axes,
            name="perfectly calibrated",
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": _GREY, "dash": "dot", "width": 1.5},
            legendrank=2000,  # last, since it is no epsilon
            showlegend=panel == 0,
            hoverinfo="skip",
        )
        for epsilon in _epsilons(bins):
            rows = bins[(bins["epsilon"] == epsilon) & (bins["probabilities"] == panels[panel])].sort_values(
                "confidence"
            )
            share = rows["rows"] / bins["rows"].max()
            figure.add_scatter(
                **axes,
                **_series(epsilon, size=(4 + 12 * share**0.5).tolist(), width=1.5),
                x=rows["confidence"].tolist(),
                y=rows["accuracy"].tolist(),
                mode="lines+markers",
                legendgroup=f"{epsilon:g}",
                showlegend=panel == 0,
                customdata=rows["rows"].tolist(),
                hovertemplate=f"epsilon {epsilon:g}<br>confidence %{{x:.3f}}<br>accuracy %{{y:.3f}}"
                "<br>rows %{customdata}<extra></extra>",
            )
    _panels(
        figure,
        ("confidence before: softmax", "accuracy"),
        ("confidence after: poly_softmax", "accuracy"),
    )
    whole = {"range": [-0.03, 1.03], "dtick": 0.2}
    return figure.update_layout(legend_title_text="epsilon", xaxis=whole, xaxis2=whole, yaxis=whole, yaxis2=whole)


def recall_by_class(recall: "DataFrame") -> Figure:
    """Which classes gain and which lose: the recall of each class, most frequent first, with a colour an epsilon.

    Args:
        recall: columns ``label``, ``training_rows``, ``epsilon``, ``recall`` (nan, for a class without rows, leaves a
            gap).

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    _check("recall", recall, ("label", "training_rows", "epsilon", "recall"))
    classes = recall.drop_duplicates("label").sort_values("training_rows", ascending=False, kind="stable")
    place = {label: i for i, label in enumerate(classes["label"])}
    epsilons = _epsilons(recall)
    few = len(place) <= 15
    figure = _figure()
    for k, epsilon in enumerate(epsilons):
        rows = recall[recall["epsilon"] == epsilon]
        rows = rows.assign(place=rows["label"].map(place)).sort_values("place")
        offset = _beside(k, len(epsilons), len(place)) if few else 0.0
        figure.add_scatter(
            **_series(epsilon, size=8 if few else 5, width=1),
            x=[i + offset for i in rows["place"]],
            y=rows["recall"].tolist(),
            mode="markers" if few else "lines+markers",
            text=[_text(label) for label in rows["label"]],
            customdata=rows["training_rows"].tolist(),
            hovertemplate=f"%{{text}}<br>epsilon {epsilon:g}<br>recall %{{y:.3f}}"
            "<br>training rows %{customdata}<extra></extra>",
        )
    names = [
        f"{_text(_shortened(str(label)))} ({rows})"
        for label, rows in zip(classes["label"], classes["training_rows"], strict=True)
    ]
    # Upright labels need about 12 pixels each; where there is no room, every second, third ... class is named.
    wide, narrow = _every(names, at_most=80), _every(names, at_most=24)
    height = _HEIGHT + (120 if len(names) > 8 else 0)
    return figure.update_layout(
        meta={"wide": wide | {"height": height}, "narrow": narrow | {"height": height}},
        height=height,
        legend_title_text="epsilon",
        xaxis={
            "title": {"text": "class (training rows)"},
            "range": [-0.6, len(names) - 0.4],
            "tickvals": wide["xaxis.tickvals"],
            "ticktext": wide["xaxis.ticktext"],
            "tickfont": {"size": 12 if few else 10},
            "autotickangles": [0, -90],
        },
        yaxis_title_text="recall",
    )


def write(figure: Figure, path: str | os.PathLike[str], *, dark: bool = False) -> None:
    """Writes a figure to a file, in the format that the file's suffix names.

    ``.html`` is one self-contained page that works offline, takes the reader's light or dark setting and fits a phone.
    ``.png``, ``.svg``, ``.pdf``, ``.jpg``, ``.jpeg`` and ``.webp`` are images, and need Chrome or Chromium; their
    background is transparent, except in ``.jpg``. The file is either written whole or not at all.

    Args:
        figure: any plotly figure; those of this module have both looks.
        path: where to; an existing file is replaced.
        dark: for an image, light writing on a dark ground. Default False.

    Raises:
        ValueError: the suffix is none of these.
        FileNotFoundError: there is no such directory.
        RuntimeError: an image is asked for, and no Chrome or Chromium is found.
        ImportError: an image is asked for, and kaleido is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".html" and suffix not in _IMAGES:
        raise ValueError(f"a figure is written to a file that ends in .html, {', '.join(_IMAGES)}; got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no directory {str(path.parent)!r} to write {path.name!r} to; create it first."
        )
    if suffix == ".html":
        body = '<main><div class="plot" id="figure-1"></div></main>'
        content = document(path.stem, body, [figure], "main { max-width: 70rem; margin: auto; padding: 1rem }").encode()
    else:
        content = _image(figure, suffix.removeprefix("."), dark)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def document(title: str, body: str, figures: Sequence[Figure], style: str = "") -> str:
    """A self-contained HTML document with figures: it makes no request, and follows the reader's light or dark setting.

    Args:
        title: of the document; plain text.
        body: HTML, with an element of the id ``figure-1``, ``figure-2``, ... for each figure.
        figures: what is drawn there.
        style: CSS that the body needs besides. ``--ground``, ``--ink``, ``--muted``, ``--grid`` and ``--line`` are the
            colours.
    """
    drawn = {f"figure-{i}": figure.to_plotly_json() for i, figure in enumerate(figures, start=1)}
    # It escapes "<", so that no text can end the script that it stands in.
    data = plotly.io.json.to_json_plotly({"figures": drawn, "templates": _TEMPLATES})
    variables = {look: "".join(f"--{name}: {tone}; " for name, tone in tones.items()) for look, tones in _TONES.items()}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>
:root {{ {variables["light"]}}}
@media (prefers-color-scheme: dark) {{ :root {{ {variables["dark"]}}} }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 {_FONT} }}
{style}
</style>
</head>
<body>
{body}
<noscript>The figures are drawn with JavaScript, which is turned off.</noscript>
<script>{get_plotlyjs()}</script>
<script>
const {{ figures, templates }} = {data};
{_DRAW}
</script>
</body>
</html>
"""


# The browser refuses whatever would leave the page. Plotly styles elements inline and saves images through blob URLs.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

_DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 700px)");
const finger = matchMedia("(pointer: coarse)");
for (const [id, { data, layout }] of Object.entries(figures)) {
  const plot = document.getElementById(id);
  // The element has the height, not the layout: plotly then follows the element's size whenever the window's changes.
  const { height, ...sizeless } = layout;
  const look = () => {
    const placed = { height, ...layout.meta?.[narrow.matches ? "narrow" : "wide"] };
    plot.style.height = `${placed.height ?? 420}px`;
    delete placed.height;
    return {
      ...placed,
      autosize: true,
      template: templates[dark.matches ? "dark" : "light"],
      dragmode: finger.matches ? false : "zoom",  // a finger scrolls the page
    };
  };
  const relook = () => Plotly.relayout(plot, look());
  look();
  Plotly.newPlot(plot, data, sizeless, { displayModeBar: false, responsive: true }).then(relook);
  for (const query of [dark, narrow]) query.addEventListener("change", relook);
}
"""


def _template(tones: Mapping[str, str]) -> dict[str, Any]:
    axis = {
        "automargin": True,
        "gridcolor": tones["grid"],
        "linecolor": tones["line"],
        "showline": True,
        "tickcolor": tones["line"],
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"color": tones["muted"], "size": 12},
        "title": {"font": {"color": tones["ink"], "size": 13}, "standoff": 10},
        "zeroline": False,
    }
    return {
        "layout": {
            "font": {"family": _FONT, "size": 13, "color": tones["ink"]},
            "hoverlabel": {
                "align": "left",
                "bgcolor": tones["ground"],
                "bordercolor": tones["line"],
                "font": {"color": tones["ink"], "family": _FONT, "size": 13},
            },
            "hovermode": "closest",
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.02,
                "yanchor": "bottom",
                "title": {"font": {"size": 13}, "side": "top"},
            },
            "margin": {"l": 50, "r": 12, "t": 20, "b": 45},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "xaxis": axis,
            "yaxis": axis,
        }
    }


_TONES = {"light": _LIGHT, "dark": _DARK}
_TEMPLATES = {look: _template(tones) for look, tones in _TONES.items()}


def _figure() -> Figure:
    return Figure(layout={"template": _TEMPLATES["light"], "height": _HEIGHT})


def _panels(figure: Figure, *titles: tuple[str, str]) -> None:
    """Lays out axes 1, 2, ... from left to right, and in ``meta``, for narrow pages, from top to bottom."""
    count = len(titles)
    wide: dict[str, Any] = {"height": _HEIGHT}
    narrow: dict[str, Any] = {"height": 340 * count}
    beside, below = 0.09, 85 / (340 * count - 100)
    for i, (x_title, y_title) in enumerate(titles):
        number = "" if i == 0 else str(i + 1)
        x, y = f"xaxis{number}", f"yaxis{number}"
        figure.update_layout(
            {
                x: {"title": {"text": x_title}, "anchor": f"y{number}"},
                y: {"title": {"text": y_title}, "anchor": f"x{number}"},
            }
        )
        width, height = ((1 - (count - 1) * gap) / count for gap in (beside, below))
        left, bottom = i * (width + beside), (count - 1 - i) * (height + below)
        # Rounding may lead past 1, which plotly refuses.
        wide |= {f"{x}.domain": [left, min(left + width, 1)], f"{y}.domain": [0, 1]}
        narrow |= {f"{x}.domain": [0, 1], f"{y}.domain": [bottom, min(bottom + height, 1)]}
    figure.update_layout({**wide, "meta": {"wide": wide, "narrow": narrow}})


def _series(epsilon: float, size: float | Sequence[float] = 6, width: float = 2.5) -> dict[str, Any]:
    """How the line of an epsilon looks wherever there is one."""
    tone = colour(epsilon)
    return {
        "name": f"{epsilon:g}",
        "line": {"color": tone, "dash": "dash" if epsilon == 0 else "solid", "width": width},
        "marker": {"color": tone, "size": size, "line": {"width": 0}, "opacity": 0.85},
    }


def _looks_of_polynomials(chosen: Iterable[Polynomial]) -> list[tuple[str, str]]:
    """A colour and a dash for each: cross-entropy and Poly-1 have their epsilon's, the others what is left."""
    ours = [_epsilon(polynomial) for polynomial in chosen]
    taken = {colour(epsilon) for epsilon in ours if epsilon is not None}
    apart = [_COLOURS[epsilon] for epsilon in (10, -1, 40, 1, 5, 0.3, 2, 200, -5)]
    left = itertools.cycle(
        itertools.product(("solid", "dashdot", "dot"), [c for c in apart if c not in taken] or apart)
    )
    looks = []
    for epsilon in ours:
        if epsilon is None:
            dash, tone = next(left)
        else:
            dash, tone = "dash" if epsilon == 0 else "solid", colour(epsilon)
        looks.append((tone, dash))
    return looks


def _epsilon(polynomial: Polynomial) -> float | None:
    """The epsilon of a Poly-1, 0 for cross-entropy, None for any other loss."""
    if float(polynomial.gamma) != 0 or float(polynomial.log_weight) != 1 or len(polynomial.coefficients) > 1:
        return None
    return float(sum(polynomial.coefficients))


def _epsilons(frame: "DataFrame") -> list[float]:
    return sorted(float(epsilon) for epsilon in frame["epsilon"].unique())


def _beside(index: int, count: int, places: int = 8) -> float:
    """The offset that sets marker ``index`` of ``count`` beside the others that share one of so many places."""
    return (index - (count - 1) / 2) * min(0.12, 0.03 * places, 0.6 / count)


def _every(names: Sequence[str], at_most: int) -> dict[str, list[Any]]:
    step = math.ceil(len(names) / at_most)
    return {"xaxis.tickvals": list(range(0, len(names), step)), "xaxis.ticktext": list(names[::step])}


def _text(given: object) -> str:
    """Text that plotly shows as it is: it would read <b> as bold, $x$ as a formula and %{x} as a placeholder."""
    return html.escape(str(given), quote=False).replace("$", "&#36;").replace("%", "&#37;")


def _shortened(label: str, length: int = 24) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _rgb(tone: str) -> list[int]:
    return [int(tone[i : i + 2], 16) for i in (1, 3, 5)]


def _check(name: str, frame: "DataFrame", columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{name} needs the columns {', '.join(columns)}; got {', '.join(map(str, frame.columns)) or 'none'}."
        )
    if frame.empty:
        raise ValueError(f"{name} has no rows: there is nothing to draw.")


def _image(figure: Figure, form: str, dark: bool) -> bytes:
    try:
        kaleido, errors = import_module("kaleido"), import_module("kaleido.errors")  # pages do without it
    except ImportError as error:
        raise ImportError("images need kaleido: pip install 'polylosses[tune]'; or write to .html.") from error
    look = "dark" if dark else "light"
    copy = Figure(figure).update_layout(template=_TEMPLATES[look])
    if form in ("jpg", "jpeg"):  # which has no transparency
        copy.update_layout(paper_bgcolor=_TONES[look]["ground"])
    size = {"width": copy.layout.width or _WIDTH, "height": copy.layout.height or _HEIGHT, "scale": 2}
    try:
        # plotly's own to_image would have the browser fetch MathJax from the network.
        image: bytes = kaleido.calc_fig_sync(copy.to_dict(), opts={"format": form, **size}, kopts={"mathjax": False})
    except errors.ChromeNotFoundError as error:
        raise RuntimeError(
            f"writing .{form} needs Chrome or Chromium, and none was found: install one, name its program in the "
            "environment variable BROWSER_PATH, or write to .html."
        ) from error
    return image
