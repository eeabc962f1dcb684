"""Report of a sweep: a self-contained HTML page."""

import html
import re
from collections.abc import Mapping, Sequence

import pandas as pd
from plotly.graph_objects import Figure

from polylosses import theme

_STYLE = """
main { max-width: 62rem; margin: auto; padding: 2.5rem 1.25rem 4rem }
h1 { margin: 0 0 .4rem; color: var(--muted); font-size: 1rem; font-weight: 500 }
h2 { margin: 3rem 0 .6rem; font-size: 1.15rem; font-weight: 600 }
.verdict { margin: 0; max-width: 34em; font-size: clamp(1.2rem, 4vw, 1.75rem); line-height: 1.3; text-wrap: pretty }
.better { color: #0f7f5b } .worse { color: #b93434 }
figure { margin: 0 }
figcaption, .notes { max-width: 44em; color: var(--muted); font-size: .93rem }
figcaption { margin-top: .4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: top }
.wide td { white-space: nowrap }
th { font-weight: 500 }
thead th { border-color: var(--line); color: var(--muted); vertical-align: bottom }
th:first-child, td:first-child { padding-left: 0 }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600 }
details { margin-top: 3rem }
details table { margin-top: .6rem }
details th, details td { text-align: left; overflow-wrap: anywhere }
details th { color: var(--muted); white-space: nowrap }
details .wide th, details .wide td { min-width: 5rem; white-space: normal }
h1, h2, p, li, figcaption { overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { .better { color: #3cc497 } .worse { color: #f28b82 } }
"""


def page(
    *,
    title: str,
    verdict: str,
    sentence: str,
    table: pd.DataFrame,
    figures: Mapping[str, tuple[Figure, str]],
    settings: Mapping[str, object],
    notes: Sequence[str] = (),
    columns: pd.DataFrame | None = None,
) -> str:
    """Report as HTML: verdict, first figure, table, remaining figures, notes; collapsed columns and settings.

    The page works offline, follows the reader's light or dark setting and adapts to narrow screens. Text is escaped.

    Args:
        title: title of the page, such as ``"polylosses tune digits"``.
        verdict: ``"better"``, ``"worse"`` or ``"no detectable difference"``.
        sentence: the verdict as a sentence. The words of ``verdict`` are highlighted in it, or put before it if it does
            not contain them.
        table: the results as text, with the column names as headings; the first column is the row heading.
        figures: figures with their captions, by heading; the most important one first.
        settings: the settings of the run, such as versions, seeds and grids. Lists and mappings are joined with commas.
            ``read``, a list of sentences on how the file was read, is shown above the columns.
        notes: notes for the reader, shown as a list.
        columns: how the columns of the features were read: ``name``, ``read``, ``missing``, ``example``, ``warning``.

    Raises:
        ValueError: ``figures`` is empty.

    Example:
        >>> import pandas, polylosses
        >>> from polylosses import plot
        >>> figure = plot.polynomials({"poly1(2)": polylosses.poly1(2.0)})
        >>> text = page(
        ...     title="polylosses tune digits",
        ...     verdict="better",
        ...     sentence="epsilon = 2 is better than plain cross-entropy: accuracy gains 1.2 points.",
        ...     table=pandas.DataFrame({"epsilon": ["0", "2"], "accuracy": ["95.1 %", "96.3 %"]}),
        ...     figures={"The losses": (figure, "Steeper is stronger.")},
        ...     settings={"seed": 0},
        ... )
        >>> "<h2>The losses</h2>" in text
        True
    """
    if not figures:
        raise ValueError("the report needs at least one figure; got none in figures.")
    first, *others = (
        _figure(i, heading, caption) for i, (heading, (_, caption)) in enumerate(figures.items(), start=1)
    )
    body = f"""<main>
<header>
<h1>{_text(title)}</h1>
<p class="verdict">{_verdict(verdict, sentence)}</p>
</header>
{first}
<section>
<h2>In numbers</h2>
{_table(table, "In numbers")}
</section>
{"" if columns is None else _columns(columns, settings.get("read"))}
{"".join(others)}
{_notes(notes)}
<details>
<summary>Settings</summary>
{_settings(settings)}
</details>
</main>"""
    return theme.document(title, body, [figure for figure, _ in figures.values()], _STYLE)


def _verdict(verdict: str, sentence: str) -> str:
    kind = verdict if verdict in ("better", "worse") else "undecided"
    place = re.search(re.escape(verdict), sentence, re.IGNORECASE)
    if place:
        start, found, end = sentence[: place.start()], place.group(), sentence[place.end() :]
    else:
        start, found, end = "", verdict[:1].upper() + verdict[1:], f": {sentence}"
    return f'{_text(start)}<strong class="{kind}">{_text(found)}</strong>{_text(end)}'


def _figure(number: int, heading: str, caption: str) -> str:
    return f"""<section>
<h2>{_text(heading)}</h2>
<figure>
<div class="plot" id="figure-{number}" role="img" aria-label="{_text(heading)}"></div>
<figcaption>{_text(caption)}</figcaption>
</figure>
</section>
"""


def _table(table: pd.DataFrame, label: str) -> str:
    # No-break spaces keep "epsilon = 0" and "95 %" on one line of a heading.
    names = [str(name).replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}") for name in table.columns]
    names = [name.replace(" %", "\N{NO-BREAK SPACE}%") for name in names]
    headings = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    rows = []
    for name, *cells in table.itertuples(index=False, name=None):
        rows.append(
            f'<tr><th scope="row">{_text(name)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in cells)}</tr>'
        )
    # tabindex allows scrolling a wide table with the keyboard.
    return f"""<div class="wide" tabindex="0" role="group" aria-label="{_text(label)}">
<table>
<thead><tr>{headings}</tr></thead>
<tbody>
{chr(10).join(rows)}
</tbody>
</table>
</div>"""


def _columns(columns: pd.DataFrame, read: object) -> str:
    heading = "How your columns were read"
    sentences = "".join(f"<li>{_text(sentence)}</li>" for sentence in read) if isinstance(read, list | tuple) else ""
    table = columns.rename(columns={"name": "column", "read": "read as"})
    return f"""<details>
<summary>{heading}</summary>
{f'<ul class="notes">{sentences}</ul>' if sentences else ""}
{_table(table, heading)}
</details>
"""


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"""<section>
<h2>To keep in mind</h2>
<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in notes)}</ul>
</section>"""


def _settings(settings: Mapping[str, object]) -> str:
    rows = []
    for name, value in settings.items():
        if name == "read":  # shown above the columns
            continue
        shown = value
        if isinstance(value, Mapping):
            shown = ", ".join(f"{key} {part}" for key, part in value.items())
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value))
        rows.append(f'<tr><th scope="row">{_text(name)}</th><td>{_text(shown)}</td></tr>')
    return f"<table><tbody>{''.join(rows)}</tbody></table>"


def _text(given: object) -> str:
    return html.escape(str(given))
