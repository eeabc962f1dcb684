"""Figures of a sweep: functions from data frames to plotly figures, and :func:`captioned` for all of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from polylosses import plot, theme
from polylosses.polynomial import Polynomial
from polylosses.tune import statistics
from polylosses.tune.experiment import Run


def captioned(
    selected: Mapping[float, Sequence[Run]],
    table: pd.DataFrame,
    losses: Mapping[str, Polynomial],
    classes: Sequence[str],
    metric: str,
    confirmed: Mapping[str, float],
) -> dict[str, tuple[Figure, str]]:
    """All figures of a sweep with their captions, by heading.

    Args:
        selected: the selection runs of each epsilon at the learning rate that it chose.
        table: :attr:`polylosses.tune.Result.table`.
        losses: the loss of each epsilon, by its name in the legend.
        classes: the names of the classes.
        metric: the key of the metric in :data:`polylosses.tune.statistics.METRICS`.
        confirmed: see :func:`metric_against_epsilon`.
    """
    runs = [run for arm in selected.values() for run in arm]
    scores = pd.DataFrame({"epsilon": r.epsilon, "repeat": r.repeat, "score": r.scores[metric]} for r in runs)
    training = pd.concat(
        pd.DataFrame(
            {
                "epsilon": epsilon,
                "epoch": np.arange(1, len(arm[0].mean_p_t) + 1),
                "mean_p_t": np.mean([run.mean_p_t for run in arm], axis=0),
            }
        )
        for epsilon, arm in selected.items()
    )
    recall = pd.concat(
        pd.DataFrame(
            {
                "label": classes,
                "training_rows": arm[0].training_rows,
                "epsilon": epsilon,
                "recall": np.mean([run.recall for run in arm], axis=0),
            }
        )
        for epsilon, arm in selected.items()
    )
    bins = pd.concat(
        statistics.pooled_reliability([run.reliability[kind] for run in arm]).assign(
            epsilon=epsilon, probabilities=kind
        )
        for epsilon, arm in selected.items()
        for kind in ("softmax", "poly_softmax")
    )
    name = statistics.METRICS[metric]
    return {
        f"{name[0].upper()}{name[1:]} against epsilon": (
            metric_against_epsilon(
                scores, table, name, higher_is_better=not statistics.lower_is_better(metric), confirmed=confirmed
            ),
            "Scores on validation rows: one dot per repeat, the mean, and the 95 % interval of the paired difference "
            "to epsilon = 0, drawn relative to the dashed line. The diamond is the confirmation: the difference on "
            "test rows, with fresh seeds.",
        ),
        "Confidence while training": (
            true_probability_over_training(training),
            "Mean probability p_t of the training label in each epoch; a positive epsilon raises it.",
        ),
        "The losses": (
            plot.polynomials(losses),
            "Loss and gradient factor (relative to cross-entropy) as functions of p, and series coefficients.",
        ),
        "Reliability": (
            reliability(bins),
            "Accuracy against confidence, before and after poly_softmax turns the softmax into the class posterior. "
            "On the diagonal, the probabilities are calibrated.",
        ),
        "Recall by class": (
            recall_by_class(recall),
            "Recall of each class on validation rows, the most frequent training class first.",
        ),
    }


def metric_against_epsilon(
    scores: pd.DataFrame,
    table: pd.DataFrame,
    metric_label: str,
    higher_is_better: bool = True,
    confirmed: Mapping[str, float] | None = None,
) -> Figure:
    """The metric against epsilon: single repeats, means and paired 95 % intervals.

    Epsilons are evenly spaced. For each, the repeats are on the left and the mean is on the right. The error bar of the
    mean is the interval of the paired difference to epsilon = 0, drawn relative to the dashed line at the mean of
    epsilon = 0; it crosses that line where the interval contains 0.

    Args:
        scores: columns ``epsilon``, ``repeat``, ``score``, with one row for each repeat of each epsilon.
        table: columns ``epsilon``, ``score`` (mean), ``difference`` (to the score of epsilon = 0), ``difference_low``
            and ``difference_high`` (its interval; nan for no error bar), and ``learning_rate``, with one row for each
            epsilon, including 0.
        metric_label: title of the vertical axis, such as ``"balanced accuracy on validation data"``.
        higher_is_better: direction of the metric, given in the axis title. Default True.
        confirmed: ``epsilon``, ``difference``, ``low`` and ``high`` of the confirmation, drawn as a diamond on the
            right. Default: none.

    Raises:
        ValueError: a column is missing, a frame is empty, or ``table`` has no row for epsilon = 0 or for an epsilon
            of ``scores``.
    """
    _check_columns("scores", scores, ("epsilon", "repeat", "score"))
    _check_columns(
        "table", table, ("epsilon", "score", "difference", "difference_low", "difference_high", "learning_rate")
    )
    rows = {float(row["epsilon"]): row for row in table.to_dict("records")}
    missing = {0.0, *_epsilons(scores)} - set(rows)
    if missing:
        raise ValueError(
            f"table has no row for epsilon = {min(missing):g}; it has {', '.join(f'{e:g}' for e in rows)}."
        )
    epsilons = sorted(rows)
    baseline = float(rows[0.0]["score"])
    offset = min(0.15, 0.03 * len(epsilons))
    figure = theme.new_figure()
    figure.add_scatter(
        name="epsilon = 0: plain cross-entropy",
        x=[-0.5, len(epsilons) - 0.5],
        y=[baseline, baseline],
        mode="lines",
        line={"color": theme.GREY, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=[i + offset for i in range(len(epsilons))],
        y=[rows[epsilon]["score"] for epsilon in epsilons],
        mode="lines",
        line={"color": theme.GREY, "width": 1},
        showlegend=False,
        hoverinfo="skip",
    )
    for i, epsilon in enumerate(epsilons):
        row, colour = rows[epsilon], theme.colour(epsilon)
        repeats = scores[scores["epsilon"] == epsilon]
        shared = {"name": f"{epsilon:g}", "showlegend": False, "mode": "markers"}
        figure.add_scatter(
            **shared,
            x=[i - offset] * len(repeats),
            y=repeats["score"].tolist(),
            marker={"color": colour, "size": 8, "opacity": 0.55},
            customdata=repeats["repeat"].tolist(),
            hovertemplate=f"epsilon {epsilon:g}, repeat %{{customdata}}<br>%{{y:.4f}}"
            f"<br>learning rate {row['learning_rate']:.3g}<extra></extra>",
        )
        hover = f"epsilon {epsilon:g}<br>mean %{{y:.4f}}<br>learning rate {row['learning_rate']:.3g}"
        bar = {}
        if epsilon != 0 and math.isfinite(row["difference_low"]) and math.isfinite(row["difference_high"]):
            above, below = row["difference_high"] - row["difference"], row["difference"] - row["difference_low"]
            bar = {"array": [above], "arrayminus": [below], "color": colour, "thickness": 3, "width": 0}
            hover += f"<br>difference {row['difference']:+.4f}"
            hover += f" ({row['difference_low']:+.4f} to {row['difference_high']:+.4f})"
        figure.add_scatter(
            **shared,
            x=[i + offset],
            y=[row["score"]],
            marker={"color": colour, "size": 11},
            error_y=bar,
            hovertemplate=f"{hover}<extra></extra>",
        )
    if confirmed is not None:
        difference, low, high = (confirmed[name] for name in ("difference", "low", "high"))
        colour = theme.colour(confirmed["epsilon"])
        figure.add_scatter(
            name="confirmed on test rows",
            x=[epsilons.index(confirmed["epsilon"]) + 2 * offset],
            y=[baseline + difference],
            mode="markers",
            marker={"color": colour, "size": 14, "symbol": "diamond"},
            error_y={"array": [high - difference], "arrayminus": [difference - low], "color": colour, "width": 6},
            hovertemplate=f"epsilon {confirmed['epsilon']:g} on test rows, fresh seeds"
            f"<br>difference {difference:+.4f} ({low:+.4f} to {high:+.4f})<extra></extra>",
        )
    # Grey legend entries stand for the traces of every colour.
    legend_only = {"x": [None], "y": [None], "mode": "markers"}
    figure.add_scatter(**legend_only, name="one repeat", marker={"color": theme.GREY, "size": 8, "opacity": 0.55})
    figure.add_scatter(**legend_only, name="mean, paired 95 % interval", marker={"color": theme.GREY, "size": 11})
    return figure.update_layout(
        xaxis={
            "title": {"text": "epsilon"},
            "tickvals": list(range(len(epsilons))),
            "ticktext": [f"{epsilon:g}" for epsilon in epsilons],
            "range": [-0.5, len(epsilons) - 0.5],
            "showgrid": False,
        },
        yaxis_title_text=f"{theme.escaped(metric_label)}<br>({'higher' if higher_is_better else 'lower'} is better)",
    )


def true_probability_over_training(training: pd.DataFrame) -> Figure:
    """Mean probability of the training label in each epoch, with a line for each epsilon.

    Args:
        training: columns ``epsilon``, ``epoch``, ``mean_p_t`` (mean probability of the training label).

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    _check_columns("training", training, ("epsilon", "epoch", "mean_p_t"))
    figure = theme.new_figure()
    few = training["epoch"].nunique() <= 15
    for epsilon in _epsilons(training):
        rows = training[training["epsilon"] == epsilon].sort_values("epoch")
        figure.add_scatter(
            **_line_style(epsilon),
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


def reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagrams of ``softmax`` (left) and ``poly_softmax`` (right), with a line for each epsilon.

    Below the diagonal, the model is overconfident. A marker's area is proportional to the number of rows in its bin.

    Args:
        bins: columns ``epsilon``, ``probabilities`` (``"softmax"`` or ``"poly_softmax"``), ``confidence`` (mean in the
            bin), ``accuracy``, ``rows`` (their number). Empty bins are left out.

    Raises:
        ValueError: a column is missing, there are no rows, or ``probabilities`` has another value.
    """
    _check_columns("bins", bins, ("epsilon", "probabilities", "confidence", "accuracy", "rows"))
    panels = ("softmax", "poly_softmax")
    for kind in bins["probabilities"].unique():
        if kind not in panels:
            raise ValueError(f"probabilities must be 'softmax' or 'poly_softmax' in every row of bins; got {kind!r}.")
    bins = bins[bins["rows"] > 0]
    figure = theme.new_figure()
    for panel, axes in enumerate(({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2"})):
        figure.add_scatter(
            **axes,
            name="perfectly calibrated",
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": theme.GREY, "dash": "dot", "width": 1.5},
            legendrank=2000,  # below the epsilons
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
                **_line_style(epsilon, size=(4 + 12 * share**0.5).tolist(), width=1.5),
                x=rows["confidence"].tolist(),
                y=rows["accuracy"].tolist(),
                mode="lines+markers",
                legendgroup=f"{epsilon:g}",
                showlegend=panel == 0,
                customdata=rows["rows"].tolist(),
                hovertemplate=f"epsilon {epsilon:g}<br>confidence %{{x:.3f}}<br>accuracy %{{y:.3f}}"
                "<br>rows %{customdata}<extra></extra>",
            )
    theme.set_panels(
        figure,
        ("confidence before: softmax", "accuracy"),
        ("confidence after: poly_softmax", "accuracy"),
    )
    unit = {"range": [-0.03, 1.03], "dtick": 0.2}
    return figure.update_layout(legend_title_text="epsilon", xaxis=unit, xaxis2=unit, yaxis=unit, yaxis2=unit)


def recall_by_class(recall: pd.DataFrame) -> Figure:
    """Recall of each class, most frequent class first, with a colour for each epsilon.

    Args:
        recall: columns ``label``, ``training_rows``, ``epsilon``, ``recall`` (nan for a gap).

    Raises:
        ValueError: a column is missing, or there are no rows.
    """
    _check_columns("recall", recall, ("label", "training_rows", "epsilon", "recall"))
    classes = recall.drop_duplicates("label").sort_values("training_rows", ascending=False, kind="stable")
    position = {label: i for i, label in enumerate(classes["label"])}
    epsilons = _epsilons(recall)
    few = len(position) <= 15
    figure = theme.new_figure()
    for k, epsilon in enumerate(epsilons):
        rows = recall[recall["epsilon"] == epsilon]
        rows = rows.assign(position=rows["label"].map(position)).sort_values("position")
        offset = theme.marker_offset(k, len(epsilons), len(position)) if few else 0.0
        figure.add_scatter(
            **_line_style(epsilon, size=8 if few else 5, width=1),
            x=[i + offset for i in rows["position"]],
            y=rows["recall"].tolist(),
            mode="markers" if few else "lines+markers",
            text=[theme.escaped(label) for label in rows["label"]],
            customdata=rows["training_rows"].tolist(),
            hovertemplate=f"%{{text}}<br>epsilon {epsilon:g}<br>recall %{{y:.3f}}"
            "<br>training rows %{customdata}<extra></extra>",
        )
    names = [
        f"{theme.escaped(theme.shortened(str(label)))} ({rows})"
        for label, rows in zip(classes["label"], classes["training_rows"], strict=True)
    ]
    # A vertical tick label needs about 12 pixels.
    wide, narrow = _ticks(names, at_most=80), _ticks(names, at_most=24)
    height = theme.HEIGHT + (120 if len(names) > 8 else 0)
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


def _line_style(epsilon: float, size: float | Sequence[float] = 6, width: float = 2.5) -> dict[str, Any]:
    """Name, line and marker of the trace of an epsilon."""
    colour = theme.colour(epsilon)
    return {
        "name": f"{epsilon:g}",
        "line": {"color": colour, "dash": "dash" if epsilon == 0 else "solid", "width": width},
        "marker": {"color": colour, "size": size, "line": {"width": 0}, "opacity": 0.85},
    }


def _epsilons(frame: pd.DataFrame) -> list[float]:
    return sorted(float(epsilon) for epsilon in frame["epsilon"].unique())


def _ticks(names: Sequence[str], at_most: int) -> dict[str, list[Any]]:
    """Evenly spaced ticks with the name at each."""
    step = math.ceil(len(names) / at_most)
    return {"xaxis.tickvals": list(range(0, len(names), step)), "xaxis.ticktext": list(names[::step])}


def _check_columns(name: str, frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{name} needs the columns {', '.join(columns)}; got {', '.join(map(str, frame.columns)) or 'none'}."
        )
    if frame.empty:
        raise ValueError(f"{name} has no rows: there is nothing to draw.")
