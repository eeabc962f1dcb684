"""Theme shared by all figures: colours, templates, panel layout, and the HTML document that figures are shown in.

An epsilon has the same colour in every figure; epsilon = 0 is grey and dashed. Figures have a transparent background
and no title. They use the light template; :func:`document` and :func:`polylosses.plot.write` can apply the dark one.
"""

import html
import math
import textwrap
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.io
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

GREY = "#8b8f96"  # epsilon = 0, and traces that belong to no epsilon

BEHIND = 0.45  # opacity of grey traces behind others

# Anchors of the colour scale over epsilon. All have a contrast of at least 3 to both backgrounds, and neighbours also
# differ in lightness, which keeps them distinguishable under the common forms of colour blindness.
COLOURS = {
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

# Used as CSS variables of the document and in the figure templates.
PALETTES = {
    "light": {"background": "#ffffff", "text": "#1f2328", "muted": "#59636e", "grid": "#e6e9ed", "line": "#aab1ba"},
    "dark": {"background": "#15181d", "text": "#e6e9ee", "muted": "#9da7b3", "grid": "#2a3038", "line": "#555e69"},
}

HEIGHT = 420  # default height of a figure, in pixels

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


def colour(epsilon: float) -> str:
    """Colour of an epsilon as ``#rrggbb``, readable on the light and on the dark background.

    Example:
        >>> colour(0), colour(1), colour(40)
        ('#8b8f96', '#3d8fe8', '#c58700')
    """
    if epsilon == 0:
        return GREY
    anchors = list(COLOURS)
    if epsilon <= anchors[0]:
        return COLOURS[anchors[0]]
    if epsilon >= anchors[-1]:
        return COLOURS[anchors[-1]]
    right = bisect_right(anchors, epsilon)
    # asinh is a logarithmic scale that is also defined at 0 and below.
    start, at, end = (math.asinh(e) for e in (anchors[right - 1], epsilon, anchors[right]))
    weight = (at - start) / (end - start)
    pairs = zip(_rgb(COLOURS[anchors[right - 1]]), _rgb(COLOURS[anchors[right]]), strict=True)
    return "#" + "".join(f"{round(a + weight * (b - a)):02x}" for a, b in pairs)


def _rgb(hex_colour: str) -> list[int]:
    return [int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]


def _template(palette: Mapping[str, str]) -> dict[str, Any]:
    axis = {
        "automargin": True,
        "gridcolor": palette["grid"],
        "linecolor": palette["line"],
        "showline": True,
        "tickcolor": palette["line"],
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"color": palette["muted"], "size": 12},
        "title": {"font": {"color": palette["text"], "size": 13}, "standoff": 10},
        "zeroline": False,
    }
    return {
        "layout": {
            "font": {"family": _FONT, "size": 13, "color": palette["text"]},
            "hoverlabel": {
                "align": "left",
                "bgcolor": palette["background"],
                "bordercolor": palette["line"],
                "font": {"color": palette["text"], "family": _FONT, "size": 13},
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


TEMPLATES = {scheme: _template(palette) for scheme, palette in PALETTES.items()}


def new_figure() -> Figure:
    """Empty figure with the light template."""
    return Figure(layout={"template": TEMPLATES["light"], "height": HEIGHT})


def add_behind(figure: Figure, number: int) -> None:
    """Add a legend entry for a number of grey traces behind others; none if there are none."""
    if number:
        figure.add_scatter(
            name=f"{number} others (their names when pointed at)",
            x=[None],
            y=[None],
            mode="lines",
            line={"color": GREY, "width": 1},
            opacity=BEHIND,
            legendrank=2000,
        )


def set_panels(figure: Figure, *titles: tuple[str, str]) -> None:
    """Place axes 1, 2, ... in rows of at most three; ``meta`` keeps this layout as ``wide`` and a stacked one as
    ``narrow``.

    Args:
        figure: the figure, changed in place.
        titles: the titles of the x and y axis of each panel.
    """
    count = len(titles)
    wide_rows = math.ceil(count / 3)
    layouts: dict[str, dict[str, Any]] = {}
    for name, rows, height in (("wide", wide_rows, HEIGHT if wide_rows == 1 else 340), ("narrow", count, 340)):
        columns = math.ceil(count / rows)
        layout: dict[str, Any] = {"height": height * rows}
        horizontal_gap, vertical_gap = 0.09, 85 / (height * rows - 100)
        panel_width, panel_height = (
            (1 - (number - 1) * gap) / number for number, gap in ((columns, horizontal_gap), (rows, vertical_gap))
        )
        for i in range(count):
            axis = "axis" if i == 0 else f"axis{i + 1}"
            row, column = divmod(i, columns)
            left, bottom = column * (panel_width + horizontal_gap), (rows - 1 - row) * (panel_height + vertical_gap)
            # Rounding may exceed 1, which plotly rejects.
            layout[f"x{axis}.domain"] = [left, min(left + panel_width, 1)]
            layout[f"y{axis}.domain"] = [bottom, min(bottom + panel_height, 1)]
        layouts[name] = layout
    for i, (x_title, y_title) in enumerate(titles):
        number = "" if i == 0 else str(i + 1)
        figure.update_layout(
            {
                f"xaxis{number}": {"title": {"text": x_title}, "anchor": f"y{number}"},
                f"yaxis{number}": {"title": {"text": y_title}, "anchor": f"x{number}"},
            }
        )
    figure.update_layout({**layouts["wide"], "meta": layouts})


def marker_offset(index: int, count: int, positions: int = 8) -> float:
    """Horizontal offset of marker ``index`` among ``count`` at one position, on an axis with ``positions`` of them."""
    return (index - (count - 1) / 2) * min(0.12, 0.03 * positions, 0.6 / count)


def escaped(text: object) -> str:
    """``text`` escaped for plotly, which reads ``<b>`` as bold, ``$x$`` as a formula and ``%{x}`` as a placeholder."""
    return html.escape(str(text), quote=False).replace("$", "&#36;").replace("%", "&#37;")


def shortened(label: str, length: int = 24) -> str:
    """``label``, cut off with an ellipsis at ``length`` characters."""
    return label if len(label) <= length else label[: length - 1] + "…"


def wrapped(text: str, width: int = 36) -> str:
    """``text`` escaped, in lines that what is shown at a pointer has room for on a narrow screen."""
    return "<br>".join(map(escaped, textwrap.wrap(text, width)))


def document(title: str, body: str, figures: Sequence[Figure], style: str = "") -> str:
    """Self-contained HTML document with figures; it works offline and follows the reader's light or dark setting.

    Args:
        title: title of the document, as plain text.
        body: HTML with an element of the id ``figure-1``, ``figure-2``, ... for each figure.
        figures: the figures.
        style: additional CSS; the colours are the variables ``--background``, ``--text``, ``--muted``, ``--grid`` and
            ``--line``.
    """
    drawn = {f"figure-{i}": figure.to_plotly_json() for i, figure in enumerate(figures, start=1)}
    # to_json_plotly escapes "<", so that no text can close the script element.
    data = plotly.io.json.to_json_plotly({"figures": drawn, "templates": TEMPLATES})
    variables = {
        scheme: "".join(f"--{name}: {value}; " for name, value in palette.items())
        for scheme, palette in PALETTES.items()
    }
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}">
<title>{html.escape(title)}</title>
<style>
:root {{ {variables["light"]}}}
@media (prefers-color-scheme: dark) {{ :root {{ {variables["dark"]}}} }}
body {{ margin: 0; background: var(--background); color: var(--text); font: 16px/1.55 {_FONT} }}
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


# Blocks all network requests. Plotly needs inline styles, and blob URLs to save images.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)

_DRAW = """
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 700px)");
const touch = matchMedia("(pointer: coarse)");
for (const [id, { data, layout }] of Object.entries(figures)) {
  const plot = document.getElementById(id);
  // The height is set on the element, not in the layout: plotly then resizes the figure with the window.
  const { height, ...rest } = layout;
  const currentLayout = () => {
    const panels = { height, ...layout.meta?.[narrow.matches ? "narrow" : "wide"] };
    plot.style.height = `${panels.height ?? 420}px`;
    delete panels.height;
    return {
      ...panels,
      autosize: true,
      template: templates[dark.matches ? "dark" : "light"],
      dragmode: touch.matches ? false : "zoom",  // dragging on a touch screen scrolls the page
    };
  };
  const update = () => Plotly.relayout(plot, currentLayout());
  currentLayout();
  Plotly.newPlot(plot, data, rest, { displayModeBar: false, responsive: true }).then(update);
  for (const query of [dark, narrow]) query.addEventListener("change", update);
}
"""
