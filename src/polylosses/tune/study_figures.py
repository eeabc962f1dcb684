"""Figures of a study: functions from data frames to plotly figures, and :func:`captioned` for all of them."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from plotly.graph_objects import Figure

from polylosses import theme
from polylosses.polynomial import Polynomial
from polylosses.tune import statistics
from polylosses.tune.figures import (
    Arm,
    arms_of,
    behind_first,
    highlighted_of,
    kind_of,
    losses_themselves,
    metric_against_loss,
    shown,
)
from polylosses.tune.plan import CONFIRMATION, SELECTION, Plan
from polylosses.tune.sequential import Confirmation, seeds_of_looks

# The colours of what is better, worse and failed, and of the confirmation's trials.
BETTER, WORSE, CONFIRMING = theme.COLOURS[-1.0], theme.COLOURS[10.0], theme.COLOURS[1.0]

# More dots than these are drawn by WebGL, which not every browser has: as SVG, 5,000 take 0.4 s, and 20,000 0.9 s.
MOST_SVG = 5_000


def captioned(
    table: pd.DataFrame,
    trials: pd.DataFrame,
    parameters: Mapping[str, Mapping[str, Any]],
    candidate: str,
    confirmation: Confirmation,
    settings: Mapping[str, Any],
) -> dict[str, tuple[Figure, str]]:
    """All figures of a study with their captions, by heading; those of which nothing is known yet are left out.

    Args:
        table, trials, parameters, candidate, confirmation, settings: those of
            :class:`polylosses.tune.StudyResult`.
    """
    losses, maximize = Plan.from_json(settings).losses, settings["maximize"]
    name = statistics.METRICS[settings["metric"]] if "metric" in settings else "score"
    highlighted = highlighted_of(losses, candidate) if candidate else ()
    others = (
        f" Of {len(losses)} losses, cross-entropy and the candidate are in colour; the others say their names when "
        "pointed at."
        if highlighted
        else ""
    )
    found = {}
    selection = trials[trials["stage"] == SELECTION]
    if candidate:
        means = points(selection, settings["points"], parameters)
        chosen = means[means["chosen"]]
        scores = selection.merge(chosen[["loss", "point"]], on=["loss", "point"])
        confirmed = None
        if confirmation.looks:
            numbers = {number: getattr(confirmation, number) for number in ("difference", "low", "high")}
            confirmed = {"loss": candidate, **numbers}
        found[f"{name[0].upper()}{name[1:]} against {kind_of(losses)}"] = (
            metric_against_loss(
                scores,
                table,
                losses,
                f"{name} on validation data",
                higher_is_better=maximize,
                confirmed=confirmed,
                parameters=list(settings["parameters"]),
                highlighted=highlighted,
            ),
            "Each loss where it did best: one dot per repeat, the mean, and the 95 % interval of the paired difference "
            "to cross-entropy, drawn relative to the dashed line. "
            + ("The diamond is the confirmation: the difference on test data, with fresh seeds." if confirmed else "")
            + others,
        )
    if confirmation.looks:
        most, fixed = settings["most_seeds"], settings["fixed"]
        found["The confirmation, look by look"] = (
            differences_at_looks(
                pd.DataFrame(asdict(look) | _regions(look.undecided) for look in confirmation.looks),
                seeds_of_looks(most, fixed),
                arms_of(losses)[candidate],
                higher_is_better=maximize,
            ),
            _about_looks(len(confirmation.looks), len(seeds_of_looks(most, fixed)), most, fixed),
        )
    if candidate and settings["parameters"]:
        found["What the hyper-parameters do"] = (
            response(means, settings["parameters"], losses, f"mean {name}", highlighted),
            "Mean score on validation data at each point that was tried, against each parameter; a star is the point "
            f"that a loss chose. Every loss tries the same {len(settings['points'])} points.{others}",
        )
    timed = trials[trials["started"].notna()]
    if len(timed):
        left_out = len(trials) - len(timed)
        found["Trainings over time"] = (
            trainings_over_time(timed, list(settings["parameters"])),
            "A dot for each training: when it started, and how long it took."
            + (
                " Crosses have failed; their errors show when they are pointed at."
                if (timed["error"] != "").any()
                else ""
            )
            + (f" Of {left_out} it is not known when they ran, and they are left out." if left_out else ""),
        )
    found["The losses"] = (
        losses_themselves(losses, highlighted),
        f"Loss and gradient factor (relative to cross-entropy) as functions of p, and series coefficients.{others}",
    )
    return found


def points(
    selection: pd.DataFrame, tried: Sequence[Mapping[str, Any]], parameters: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """What each loss scored at each point.

    Args:
        selection: the trials of the selection: columns ``loss``, ``point``, ``score``.
        tried: the points.
        parameters: those that each loss chose.

    Returns:
        Columns ``loss``, ``point``, the parameters, ``score`` (mean of what did not fail, nan if all did),
        ``repeats`` (their number) and ``chosen``.
    """
    means = selection.groupby(["loss", "point"], sort=False)["score"].agg(score="mean", repeats="count").reset_index()
    for name in tried[0]:
        means[name] = pd.Series([tried[point][name] for point in means["point"]], dtype=object)
    # Of points that are the same twice, the first is chosen.
    first = {loss: next(k for k, point in enumerate(tried) if point == chosen) for loss, chosen in parameters.items()}
    means["chosen"] = means["point"] == means["loss"].map(first)
    return means


def _regions(undecided: tuple[float, float]) -> dict[str, float]:
    return dict(zip(("undecided_low", "undecided_high"), undecided, strict=True))


def _about_looks(taken: int, possible: int, most: int, fixed: bool) -> str:
    beyond = "An estimate in the green or red region is a verdict"
    if fixed:
        return f"The difference on test data with all {most} fresh seeds, and its 95 % interval. {beyond}."
    return (
        f"The difference on test data at each look at the fresh seeds: {taken} of {possible} possible looks, of at "
        f"most {most} seeds. {beyond}; in the grey region around 0, more seeds are of no use. Either ends the study. "
        "The 95 % interval holds whatever look the study stops at, and is wider for that than one of a fixed number of "
        "seeds."
    )


def differences_at_looks(
    looks: pd.DataFrame, possible: Sequence[int], arm: Arm, higher_is_better: bool = True
) -> Figure:
    """The difference to cross-entropy at each look, with the regions in which the study stops.

    Args:
        looks: columns ``seeds``, ``difference``, ``low``, ``high`` (its interval), ``undecided_low`` and
            ``undecided_high`` (beyond these there is a verdict), ``futile_low`` and ``futile_high`` (between these
            there is no use in more seeds).
        possible: the numbers of seeds at which there may be a look.
        arm: how the loss is drawn that is compared with cross-entropy.
        higher_is_better: direction of the score. Default True.
    """
    ends = looks[["low", "high", "undecided_low", "undecided_high"]].to_numpy()
    least, most = min(0.0, float(ends.min())), max(0.0, float(ends.max()))
    margin = 0.15 * (most - least) or 1.0
    least, most = least - margin, most + margin
    seeds, rows = looks["seeds"].tolist(), looks.to_dict("records")
    above = [(row["undecided_high"], most, f"above {row['undecided_high']:+.3g}") for row in rows]
    below = [(least, row["undecided_low"], f"below {row['undecided_low']:+.3g}") for row in rows]
    futile = [
        (row["futile_low"], row["futile_high"], f"from {row['futile_low']:+.3g} to {row['futile_high']:+.3g}")
        for row in rows
    ]
    figure = theme.new_figure()

    def fill(name: str, colour: str, parts: Sequence[tuple[float, float, str]]) -> None:
        figure.add_bar(
            name=name,
            x=seeds,
            y=[high - low for low, high, _ in parts],
            base=[low for low, _, _ in parts],
            width=max(0.6, 0.055 * max(possible)),
            marker={"color": colour, "opacity": 0.35, "line": {"width": 0}},
            text=[text for _, _, text in parts],
            textposition="none",
            hovertemplate=f"{name}<br>%{{text}}<br>at %{{x}} seeds<extra></extra>",
        )

    fill("verdict: better", BETTER, above if higher_is_better else below)
    fill("verdict: worse", WORSE, below if higher_is_better else above)
    if any(low < high for low, high, _ in futile):
        fill("no use in more seeds", theme.GREY, futile)
    figure.add_scatter(
        name="cross-entropy",
        x=[0, max(possible) * 1.05],
        y=[0, 0],
        mode="lines",
        line={"color": theme.GREY, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    figure.add_scatter(
        name=f"{arm.noun}: difference, 95 % interval",
        x=seeds,
        y=looks["difference"].tolist(),
        mode="lines+markers",
        line={"color": arm.colour, "width": 1.5},
        marker={"color": arm.colour, "size": 12, "symbol": "diamond"},
        error_y={
            "array": (looks["high"] - looks["difference"]).tolist(),
            "arrayminus": (looks["difference"] - looks["low"]).tolist(),
            "color": arm.colour,
            "thickness": 2.5,
            "width": 6,
        },
        customdata=looks[["low", "high"]].to_numpy().tolist(),
        hovertemplate="%{x} seeds<br>difference %{y:+.3g} (%{customdata[0]:+.3g} to %{customdata[1]:+.3g})"
        "<extra></extra>",
    )
    ticks = sorted({*possible, *seeds})
    return figure.update_layout(
        barmode="overlay",
        meta={"wide": {"height": theme.HEIGHT}, "narrow": {"height": theme.HEIGHT + 80}},
        xaxis={
            "title": {"text": "fresh seeds (pairs of trainings)"},
            "range": [0, max(possible) * 1.05],
            "tickvals": ticks,
            "showgrid": False,
        },
        yaxis={
            "title": {
                "text": f"difference to cross-entropy<br>({'higher' if higher_is_better else 'lower'} is better)"
            },
            "range": [least, most],
        },
    )


def response(
    means: pd.DataFrame,
    parameters: Mapping[str, Mapping[str, Any]],
    losses: Mapping[str, Polynomial],
    score_label: str,
    highlighted: Collection[str] = (),
) -> Figure:
    """The mean score at each point against each parameter, one panel for each.

    Args:
        means: as from :func:`points`.
        parameters: the distribution of each parameter, as Optuna's JSON: the scale of its axis.
        losses: the losses by name.
        score_label: title of the vertical axes.
        highlighted: names of those to draw in colour. Default: all.
    """
    arms = arms_of(losses, highlighted)
    figure = theme.new_figure()
    layout: dict[str, Any] = {}
    for panel, (parameter, described) in enumerate(parameters.items()):
        number = "" if panel == 0 else str(panel + 1)
        given = described["attributes"]
        choices = [json.dumps(choice) for choice in given.get("choices", ())]
        for k, (name, arm) in enumerate(behind_first(arms)):
            rows = means[(means["loss"] == name) & means["score"].notna()]
            at: list[Any] = rows[parameter].tolist()
            if choices:
                offset = theme.marker_offset(k, len(arms), len(choices))
                at = [choices.index(json.dumps(value)) + offset for value in at]
            rows = rows.assign(at=at, value=[theme.escaped(shown(value)) for value in rows[parameter]])
            rows = rows.sort_values("at", kind="stable")
            starred = [chosen and arm.highlighted for chosen in rows["chosen"]]
            small = 7 if arm.highlighted else 4
            style = arm.trace(size=[14 if star else small for star in starred], width=1.5)
            style["marker"]["symbol"] = ["star" if star else "circle" for star in starred]
            figure.add_scatter(
                **style | {"showlegend": panel == 0 and arm.highlighted},
                x=rows["at"].tolist(),
                y=rows["score"].tolist(),
                xaxis=f"x{number}",
                yaxis=f"y{number}",
                # With other parameters that differ, too, neighbours on a line are none.
                mode="lines+markers" if len(parameters) == 1 and not choices else "markers",
                legendgroup=name,
                customdata=rows[["value", "repeats"]].to_numpy().tolist(),
                hovertemplate=f"{arm.noun}<br>{theme.escaped(parameter)} %{{customdata[0]}}<br>mean %{{y:.4g}} "
                "(%{customdata[1]} repeats)<extra></extra>",
            )
        if choices:
            layout[f"xaxis{number}"] = {
                "tickvals": list(range(len(choices))),
                "ticktext": [theme.escaped(theme.shortened(shown(choice), 12)) for choice in given["choices"]],
                "range": [-0.5, len(choices) - 0.5],
                "showgrid": False,
            }
        elif given["log"]:
            layout[f"xaxis{number}"] = {"type": "log", **_log_ticks(given["low"], given["high"])}
    theme.add_behind(figure, sum(not arm.highlighted for arm in arms.values()))
    figure.add_scatter(
        name="chosen", x=[None], y=[None], mode="markers", marker={"color": theme.GREY, "size": 14, "symbol": "star"}
    )
    theme.set_panels(figure, *((theme.escaped(name), theme.escaped(score_label)) for name in parameters))
    return figure.update_layout(layout).update_layout(legend_title_text=kind_of(losses))


def _log_ticks(low: float, high: float) -> dict[str, list[Any]]:
    """Ticks at powers of ten; at 2 and 5, too, or at powers of more tens, if these are too few or too many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= 2 else (1,)
    at = [digit * 10.0**power for power in range(first, last + 1, math.ceil((last - first) / 6)) for digit in digits]
    return {"tickvals": at, "ticktext": [f"{value:g}" for value in at]}


def trainings_over_time(trials: pd.DataFrame, parameters: Sequence[str] = ()) -> Figure:
    """When each training started, and how long it took.

    Args:
        trials: columns ``stage``, ``loss``, ``repeat``, ``score``, ``error``, ``tries``, ``worker``, ``started``
            (with a time zone), ``seconds``, and the parameters.
        parameters: columns to show with a training that is pointed at.
    """
    started = pd.to_datetime(trials["started"], utc=True)
    elapsed = (started - started.min()).dt.total_seconds()
    unit, size = next(
        (unit, size)
        for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
        if elapsed.max() >= 2 * size or size == 1
    )
    trials = trials.assign(elapsed=elapsed / size)
    failed = trials["error"] != ""
    figure = theme.new_figure()
    draw = figure.add_scatter if len(trials) <= MOST_SVG else figure.add_scattergl
    for name, rows, marker in (
        (SELECTION, trials[~failed & (trials["stage"] == SELECTION)], {"color": theme.GREY, "symbol": "circle"}),
        (CONFIRMATION, trials[~failed & (trials["stage"] == CONFIRMATION)], {"color": CONFIRMING, "symbol": "circle"}),
        ("failed", trials[failed], {"color": WORSE, "symbol": "x"}),
    ):
        if rows.empty:
            continue
        draw(
            name=f"{name} ({len(rows)})",
            x=rows["elapsed"].round(6).tolist(),
            y=rows["seconds"].round(6).tolist(),
            mode="markers",
            marker={**marker, "size": 8 if len(trials) <= 300 else 5, "opacity": 0.7},
            text=[_described(row, parameters) for row in rows.to_dict("records")],
            hovertemplate="%{text}<br>%{y:.3g} s<extra></extra>",
        )
    seconds = trials["seconds"]
    wide = seconds.min() > 0 and seconds.max() > 30 * seconds.min()
    return figure.update_layout(
        xaxis={"title": {"text": f"{unit} since the first training started"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": "seconds that it took"},
            **({"type": "log", **_log_ticks(seconds.min(), seconds.max())} if wide else {"rangemode": "tozero"}),
            "exponentformat": "none",
        },
    )


def _described(row: Mapping[Any, Any], parameters: Sequence[str]) -> str:
    """A training in lines for who points at it."""
    chosen = ", ".join(f"{name} {shown(row[name])}" for name in parameters)
    host, _, process = str(row["worker"]).rpartition(":")[0].rpartition(":")
    lines = [
        f"{row['stage']}, repeat {row['repeat']}",
        theme.shortened(str(row["loss"]), 80),
        chosen,
        theme.shortened(row["error"], 300) if row["error"] else f"score {row['score']:.4g}",
        f"tried {row['tries']} times" if row["tries"] > 1 else "",
        f"{host}:{process}" if host else str(row["worker"]),
        f"{row['started']:%Y-%m-%d %H:%M:%S}",
    ]
    return "<br>".join(theme.wrapped(line) for line in lines if line)
