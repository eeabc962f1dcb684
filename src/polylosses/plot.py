"""Figures of losses, and :func:`write` to save any figure to a file."""

import itertools
import math
import os
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from polylosses.polynomial import Polynomial, epsilon_of

try:
    from plotly.graph_objects import Figure
except ImportError as error:
    raise ImportError("polylosses.plot needs plotly: pip install 'polylosses[tune]'") from error

from polylosses import theme

__all__ = ["polynomials", "write"]

_IMAGE_WIDTH = 1000  # pixels; in a page, a figure is as wide as its element
_IMAGE_SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


class Style(NamedTuple):
    """How a loss is drawn: in grey and thin, unless it is ``highlighted``."""

    colour: str
    dash: str
    highlighted: bool


def styles(losses: Mapping[str, Polynomial], highlighted: Collection[str] = ()) -> dict[str, Style]:
    """The style of each loss, the same in all figures that are given the same losses.

    Cross-entropy is grey and dashed, a Poly-1 has the colour of its epsilon, and others a pair of colour and dash that
    none of these has.

    Args:
        losses: the losses by name.
        highlighted: names of those to tell apart; all others are grey and thin. Default: all.
    """
    distinct = [theme.COLOURS[epsilon] for epsilon in (10, -1, 40, 1, 5, 0.3, 2, 200, -5)]
    shown = [name for name in losses if not highlighted or name in highlighted]
    epsilons = {name: epsilon_of(losses[name]) for name in shown}
    used = {theme.colour(epsilon) for epsilon in epsilons.values() if epsilon is not None}
    unused = itertools.cycle(
        itertools.product(("solid", "dashdot", "dot"), [c for c in distinct if c not in used] or distinct)
    )
    found = {name: Style(theme.GREY, "solid", False) for name in losses}
    for name, epsilon in epsilons.items():
        if epsilon is None:
            dash, colour = next(unused)
        else:
            dash, colour = "dash" if epsilon == 0 else "solid", theme.colour(epsilon)
        found[name] = Style(colour, dash, True)
    return found


def polynomials(named: Mapping[str, Polynomial], highlighted: Collection[str] = ()) -> Figure:
    """Losses as functions of the probability ``p`` of the true class, in three panels.

    From left to right: the loss ``L(p)``; its gradient relative to that of cross-entropy, ``-dL / d log p``; and the
    series coefficients of the powers ``j + gamma`` of ``1 - p``, for ``j`` = 1 to 8. ``p`` starts at 0.005. The loss
    axis is cut off where one loss is far above the others.

    Args:
        named: the polynomials by their name in the legend.
        highlighted: names of those to draw in colour, with the others thin and grey behind. Default: all.

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
    figure = theme.new_figure()
    grid = [0.005 + 0.995 * (i / 199) ** 2 for i in range(200)]  # denser near 0, where the losses are steep
    highest, lowest = [], 0.0
    looks = styles(named, highlighted)
    behind_first = sorted(named.items(), key=lambda pair: looks[pair[0]].highlighted)
    for index, (name, polynomial) in enumerate(behind_first):
        look = looks[name]
        loss = [float(polynomial.value(math.log(p), 1 - p)) for p in grid]
        factor = [-float(polynomial.slope(math.log(p), 1 - p)) for p in grid]
        highest.append(max(loss))
        lowest = min(lowest, *loss)
        line = {"color": look.colour, "dash": look.dash, "width": 2.5 if look.highlighted else 1, "simplify": False}
        shared = {
            "name": theme.escaped(theme.shortened(name, 32)),
            "legendgroup": str(index),
            "line": line,
            "opacity": 1 if look.highlighted else theme.BEHIND,
        }
        said = f"{theme.wrapped(theme.shortened(name, 80))}<br>"
        curve = {**shared, "x": grid, "mode": "lines", "showlegend": look.highlighted}
        figure.add_scatter(**curve, y=loss, hovertemplate=f"{said}p %{{x:.3f}}<br>loss %{{y:.3f}}<extra></extra>")
        figure.add_scatter(
            **curve | {"showlegend": False},
            y=factor,
            xaxis="x2",
            yaxis="y2",
            hovertemplate=f"{said}p %{{x:.3f}}<br>factor %{{y:.3f}}<extra></extra>",
        )
        figure.add_scatter(
            **shared,
            x=[j + theme.marker_offset(index, len(named)) for j in range(1, 9)],
            y=[float(c) for c in polynomial.series(8)],
            xaxis="x3",
            yaxis="y3",
            showlegend=False,
            mode="markers",
            marker={"color": look.colour, "size": 7 if look.highlighted else 4},
            customdata=[j + float(polynomial.gamma) for j in range(1, 9)],
            hovertemplate=f"{said}coefficient of (1 - p)<sup>%{{customdata:.3~g}}</sup>: %{{y:.3f}}<extra></extra>",
        )
    theme.add_behind(figure, len(named) - sum(look.highlighted for look in looks.values()))
    # Without the limit, one large epsilon would flatten all other curves.
    if max(highest) > (limit := max(8.0, 2 * min(highest))):
        figure.update_layout(yaxis_range=[lowest, limit])
    theme.set_panels(
        figure,
        ("probability of the true class p", "loss L(p)"),
        ("probability of the true class p", "gradient factor -dL/d log p"),
        ("j, in the power (1 - p)<sup>j + gamma</sup>", "series coefficient"),
    )
    unit = {"range": [0, 1], "dtick": 0.2}
    return figure.update_layout(xaxis=unit, xaxis2=unit, xaxis3={"dtick": 1, "range": [0.4, 8.6], "showgrid": False})


def write(figure: Figure, path: str | os.PathLike[str], *, dark: bool = False) -> None:
    """Write a figure to a file, in the format given by the suffix.

    ``.html`` is a self-contained page that works offline and follows the reader's light or dark setting. The image
    formats ``.png``, ``.svg``, ``.pdf``, ``.jpg``, ``.jpeg`` and ``.webp`` need Chrome or Chromium; their background is
    transparent, except for JPEG. The file appears only once it is complete.

    Args:
        figure: any plotly figure. The theme replaces its template; colours set outside the template are kept.
        path: the output file; an existing one is replaced.
        dark: use the dark theme for an image. Default False.

    Raises:
        ValueError: the suffix is not supported.
        FileNotFoundError: the directory does not exist.
        RuntimeError: Chrome or Chromium, needed for an image, is not found.
        ImportError: kaleido, needed for an image, is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".html" and suffix not in _IMAGE_SUFFIXES:
        raise ValueError(
            f"a figure is written to a file that ends in .html, {', '.join(_IMAGE_SUFFIXES)}; got {str(path)!r}."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no directory {str(path.parent)!r} to write {path.name!r} to; create it first."
        )
    if suffix == ".html":
        body = '<main><div class="plot" id="figure-1"></div></main>'
        style = "main { max-width: 70rem; margin: auto; padding: 1rem }"
        content = theme.document(path.stem, body, [figure], style).encode()
    else:
        content = _image(figure, suffix.removeprefix("."), dark)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _image(figure: Figure, image_format: str, dark: bool) -> bytes:
    try:
        kaleido, errors = import_module("kaleido"), import_module("kaleido.errors")  # HTML output works without it
    except ImportError as error:
        raise ImportError("images need kaleido: pip install 'polylosses[tune]'; or write to .html.") from error
    scheme = "dark" if dark else "light"
    copy = Figure(figure).update_layout(template=theme.TEMPLATES[scheme])
    if image_format in ("jpg", "jpeg"):  # no transparency
        copy.update_layout(paper_bgcolor=theme.PALETTES[scheme]["background"])
    size = {"width": copy.layout.width or _IMAGE_WIDTH, "height": copy.layout.height or theme.HEIGHT, "scale": 2}
    options = {"format": image_format, **size}
    try:
        # plotly's to_image would make the browser fetch MathJax from the network.
        image: bytes = kaleido.calc_fig_sync(copy.to_dict(), opts=options, kopts={"mathjax": False})
    except errors.ChromeNotFoundError as error:
        raise RuntimeError(
            f"writing .{image_format} needs Chrome or Chromium, and none was found: install one, name its program in "
            "the environment variable BROWSER_PATH, or write to .html."
        ) from error
    return image
