"""Figures of how losses compare: functions from data frames to plotly figures, and :func:`captioned` for those of a
sweep.

A loss is given by its name in the column ``loss`` of a frame. Where all losses are Poly-1 or cross-entropy, the figures
speak of epsilon.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from polylosses import plot, theme
from polylosses.polynomial import Polynomial, epsilon_of
from polylosses.tune import statistics
from polylosses.tune.plan import CROSS_ENTROPY

if TYPE_CHECKING:
    from polylosses.tune.experiment import Run

# More losses than these can't be told apart by colour; cross-entropy and the candidate alone are in colour then.
MOST_COLOURED = 12


@dataclass(frozen=True)
class Arm:
    """How a loss is named and drawn."""

    label: str
    """Its epsilon if all losses have one, else its name, escaped."""
    noun: str
    """Its label by itself: "epsilon 2" or "focal(2)", long ones in lines."""
    colour: str
    dash: str
    highlighted: bool

    def trace(self, size: float | Sequence[float] = 6, width: float = 2.5) -> dict[str, Any]:
        """Name, legend entry, line and marker of a trace."""
        return {
            "name": self.label,
            "showlegend": self.highlighted,
            "opacity": 1 if self.highlighted else theme.BEHIND,
            "line": {"color": self.colour, "dash": self.dash, "width": width if self.highlighted else 1},
            "marker": {"color": self.colour, "size": size, "line": {"width": 0}, "opacity": 0.85},
        }


def kind_of(losses: Mapping[str, Polynomial]) -> str:
    """``"epsilon"`` if all losses are Poly-1 or cross-entropy and differ in it, else ``"loss"``."""
    epsilons = [epsilon_of(polynomial) for polynomial in losses.values()]
    return "loss" if None in epsilons or len(set(epsilons)) < len(epsilons) else "epsilon"


def arms_of(losses: Mapping[str, Polynomial], highlighted: Collection[str] = ()) -> dict[str, Arm]:
    """How each loss is drawn, in this order: that of epsilon, or else that of ``losses``."""
    styles, kind = plot.styles(losses, highlighted), kind_of(losses)
    epsilons = {name: epsilon_of(polynomial) or 0.0 for name, polynomial in losses.items()}
    arms = {}
    for name in sorted(losses, key=epsilons.__getitem__) if kind == "epsilon" else losses:
        if kind == "epsilon":
            label, noun = f"{epsilons[name]:g}", f"epsilon {epsilons[name]:g}"
        else:
            label, noun = theme.escaped(theme.shortened(name, 32)), theme.wrapped(theme.shortened(name, 80))
        arms[name] = Arm(label, noun, *styles[name])
    return arms


def highlighted_of(losses: Mapping[str, Polynomial], candidate: str) -> tuple[str, ...]:
    """The losses to draw in colour; none, which is all, if they can be told apart."""
    return (CROSS_ENTROPY, candidate) if len(losses) > MOST_COLOURED else ()


def captioned(
    selected: Mapping[str, "Sequence[Run]"],
    table: pd.DataFrame,
    losses: Mapping[str, Polynomial],
    classes: Sequence[str],
    metric: str,
    confirmed: Mapping[str, Any],
    every: int = 1,
) -> dict[str, tuple[Figure, str]]:
    """All figures of a sweep with their captions, by heading.

    Args:
        selected: the selection runs of each loss at the learning rate that it chose.
        table: :attr:`polylosses.tune.Result.table`.
        losses: the losses by name.
        classes: the names of the classes.
        metric: the key of the metric in :data:`polylosses.tune.statistics.METRICS`.
        confirmed: see :func:`metric_against_loss`.
        every: 1 where the probability of the training label is that of each epoch; else of every so many rounds.
    """
    scores = pd.DataFrame(
        {"loss": loss, "repeat": run.repeat, "score": run.scores[metric]}
        for loss, runs in selected.items()
        for run in runs
    )
    step = "epoch" if every == 1 else "round"
    training = pd.concat(
        pd.DataFrame(
            {
                "loss": loss,
                step: every * np.arange(1, len(runs[0].mean_p_t) + 1),
                "mean_p_t": np.mean([run.mean_p_t for run in runs], axis=0),
            }
        )
        for loss, runs in selected.items()
    )
    recall = pd.concat(
        pd.DataFrame(
            {
                "label": classes,
                "training_rows": runs[0].training_rows,
                "loss": loss,
                "recall": np.mean([run.recall for run in runs], axis=0),
            }
        )
        for loss, runs in selected.items()
    )
    bins = pd.concat(
        statistics.pooled_reliability([run.reliability[kind] for run in runs]).assign(loss=loss, probabilities=kind)
        for loss, runs in selected.items()
        for kind in ("softmax", "poly_softmax")
    )
    name, kind = statistics.METRICS[metric], kind_of(losses)
    highlighted = highlighted_of(losses, confirmed["loss"])
    baseline = "epsilon = 0" if kind == "epsilon" else CROSS_ENTROPY
    return {
        f"{name[0].upper()}{name[1:]} against {kind}": (
            metric_against_loss(
                scores,
                table.rename(columns={"learning_rate": "learning rate"}),
                losses,
                name,
                higher_is_better=not statistics.lower_is_better(metric),
                confirmed=confirmed,
                parameters=["learning rate"],
                highlighted=highlighted,
            ),
            "Scores on validation rows: one dot per repeat, the mean, and the 95 % interval of the paired difference "
            f"to {baseline}, drawn relative to the dashed line. The diamond is the confirmation: the difference on "
            "test rows, with fresh seeds.",
        ),
        "Confidence while training": (
            true_probability_over_training(training, losses, highlighted, step),
            "Mean probability p_t of the training label in each epoch; a positive epsilon raises it."
            if every == 1
            else f"Mean probability p_t of the training label every {every} rounds, with the learning rate that each "
            "loss chose.",
        ),
        "The losses": (
            losses_themselves(losses, highlighted),
            "Loss and gradient factor (relative to cross-entropy) as functions of p, and series coefficients.",
        ),
        "Reliability": (
            reliability(bins, losses, highlighted),
            "Accuracy against confidence, before and after poly_softmax turns the softmax into the class posterior. "
            "On the diagonal, the probabilities are calibrated.",
        ),
        "Recall by class": (
            recall_by_class(recall, losses, highlighted),
            "Recall of each class on validation rows, the most frequent training class first.",
        ),
    }


def metric_against_loss(
    scores: pd.DataFrame,
    table: pd.DataFrame,
    losses: Mapping[str, Polynomial],
    metric_label: str,
    higher_is_better: bool = True,
    confirmed: Mapping[str, Any] | None = None,
    parameters: Sequence[str] = (),
    highlighted: Collection[str] = (),
) -> Figure:
    """The metric against the loss: single repeats, means and paired 95 % intervals.

    Losses are evenly spaced: their epsilons on the horizontal axis, if all have one; else their names from the top
    down. For each, the repeats come first, and then the mean. The error bar of the mean is the interval of the paired
    difference to cross-entropy, drawn relative to the dashed line at the mean of cross-entropy; it crosses that line
    where the interval contains 0.

    Args:
        scores: columns ``loss``, ``repeat``, ``score``, with one row for each repeat of each loss; nan is left out.
        table: columns ``loss``, ``score`` (mean), ``difference`` (to the score of cross-entropy), ``difference_low``
            and ``difference_high`` (its interval; nan for no error bar), with one row for each loss, including
            cross-entropy.
        losses: the losses by name.
        metric_label: title of the axis, such as ``"balanced accuracy on validation data"``.
        higher_is_better: direction of the metric, given in the axis title. Default True.
        confirmed: ``loss``, ``difference``, ``low`` and ``high`` of the confirmation, drawn as a diamond. Default:
            none.
        parameters: columns of ``table`` to show with a loss that is pointed at. Default: none.
        highlighted: names of those to draw in colour. Default: all.

    Raises:
        ValueError: a column is missing, a frame is empty, ``table`` has no row for cross-entropy or for a loss of
            ``scores``, or a loss is none of ``losses``.
    """
    _check_columns("scores", scores, ("loss", "repeat", "score"))
    _check_columns("table", table, ("loss", "score", "difference", "difference_low", "difference_high", *parameters))
    rows = {row["loss"]: row for row in table.to_dict("records")}
    missing = [name for name in (CROSS_ENTROPY, *scores["loss"].unique()) if name not in rows]
    if missing:
        raise ValueError(f"table has no row for {missing[0]}; it has {', '.join(rows)}.")
    arms = _arms_in(table, losses, highlighted)
    by_epsilon = kind_of(losses) == "epsilon"
    along, across = ("x", "y") if by_epsilon else ("y", "x")
    baseline = float(rows[CROSS_ENTROPY]["score"])
    # Where the repeats, the mean and the confirmation of a loss are, beside its place.
    offset = min(0.15, 0.03 * len(arms))
    of_repeats, of_mean, of_confirmed = (-offset, offset, 2 * offset) if by_epsilon else (-0.22, 0.1, 0.36)
    figure = theme.new_figure()
    figure.add_scatter(
        name="epsilon = 0: plain cross-entropy" if by_epsilon else CROSS_ENTROPY,
        **{along: [-0.5, len(arms) - 0.5], across: [baseline, baseline]},
        mode="lines",
        line={"color": theme.GREY, "dash": "dash", "width": 2},
        hoverinfo="skip",
    )
    if by_epsilon:
        figure.add_scatter(
            x=[i + of_mean for i in range(len(arms))],
            y=[rows[name]["score"] for name in arms],
            mode="lines",
            line={"color": theme.GREY, "width": 1},
            showlegend=False,
            hoverinfo="skip",
        )
    for i, (name, arm) in enumerate(arms.items()):
        row = rows[name]
        repeats = scores[(scores["loss"] == name) & scores["score"].notna()]
        opacity = 1 if arm.highlighted else theme.BEHIND
        shared = {"name": arm.label, "showlegend": False, "mode": "markers", "opacity": opacity}
        chosen = "".join(f"<br>{theme.escaped(one)} {theme.escaped(shown(row[one]))}" for one in parameters)
        figure.add_scatter(
            **shared,
            **{along: [i + of_repeats] * len(repeats), across: repeats["score"].tolist()},
            marker={"color": arm.colour, "size": 8 if by_epsilon else 7, "opacity": 0.55},
            customdata=repeats["repeat"].tolist(),
            hovertemplate=f"{arm.noun}, repeat %{{customdata}}<br>%{{{across}:.4g}}{chosen}<extra></extra>",
        )
        hover = f"{arm.noun}<br>mean %{{{across}:.4g}}{chosen}"
        bar = {}
        if name != CROSS_ENTROPY and math.isfinite(row["difference_low"]) and math.isfinite(row["difference_high"]):
            above, below = row["difference_high"] - row["difference"], row["difference"] - row["difference_low"]
            bar = {"array": [above], "arrayminus": [below], "color": arm.colour, "thickness": 3, "width": 0}
            hover += f"<br>difference {row['difference']:+.3g}"
            hover += f" ({row['difference_low']:+.3g} to {row['difference_high']:+.3g})"
        figure.add_scatter(
            **shared,
            **{along: [i + of_mean], across: [row["score"]], f"error_{across}": bar},
            marker={"color": arm.colour, "size": 11},
            hovertemplate=f"{hover}<extra></extra>",
        )
    if confirmed is not None:
        arm = arms[confirmed["loss"]]
        difference, low, high = (confirmed[name] for name in ("difference", "low", "high"))
        bar = {"array": [high - difference], "arrayminus": [difference - low], "color": arm.colour, "width": 6}
        figure.add_scatter(
            name="confirmed on test rows",
            **{
                along: [list(arms).index(confirmed["loss"]) + of_confirmed],
                across: [baseline + difference],
                f"error_{across}": bar,
            },
            mode="markers",
            marker={"color": arm.colour, "size": 14, "symbol": "diamond"},
            hovertemplate=f"{arm.noun} on test rows, fresh seeds"
            f"<br>difference {difference:+.3g} ({low:+.3g} to {high:+.3g})<extra></extra>",
        )
    # Grey legend entries stand for the traces of every colour.
    legend_only = {"x": [None], "y": [None], "mode": "markers"}
    figure.add_scatter(**legend_only, name="one repeat", marker={"color": theme.GREY, "size": 8, "opacity": 0.55})
    figure.add_scatter(**legend_only, name="mean, paired 95 % interval", marker={"color": theme.GREY, "size": 11})
    direction = f"({'higher' if higher_is_better else 'lower'} is better)"
    labels = [arm.label for arm in arms.values()]
    ticks = {"tickvals": list(range(len(arms))), "ticktext": labels, "showgrid": False}
    if by_epsilon:
        return figure.update_layout(
            xaxis={"title": {"text": "epsilon"}, "range": [-0.5, len(arms) - 0.5], **ticks},
            yaxis_title_text=f"{theme.escaped(metric_label)}<br>{direction}",
        )
    height = max(theme.HEIGHT - 60, 130 + 34 * len(arms))
    layouts = {
        name: {
            "height": height + (100 if name == "narrow" else 0),  # its legend has more lines
            "yaxis.ticktext": [theme.escaped(theme.shortened(one, length)) for one in arms],
            "yaxis.tickfont.size": size,
            "xaxis.title.text": f"{theme.wrapped(metric_label, 2 * length - 30)}<br>{direction}",
        }
        for name, length, size in (("wide", 40, 12), ("narrow", 24, 11))
    }
    return figure.update_layout(
        height=height,
        meta=layouts,
        xaxis_title_text=layouts["wide"]["xaxis.title.text"],
        yaxis={"title": {"text": "loss"}, "range": [len(arms) - 0.5, -0.5], **ticks},
    )


def losses_themselves(losses: Mapping[str, Polynomial], highlighted: Collection[str] = ()) -> Figure:
    """The losses as functions of p, named as in the other figures. Arguments as for :func:`arms_of`."""
    if kind_of(losses) == "loss":
        return plot.polynomials(losses, highlighted)
    arms = arms_of(losses, highlighted)
    return plot.polynomials(
        {arm.label: losses[name] for name, arm in arms.items()}, [arms[name].label for name in highlighted]
    ).update_layout(legend_title_text="epsilon")


def true_probability_over_training(
    training: pd.DataFrame, losses: Mapping[str, Polynomial], highlighted: Collection[str] = (), step: str = "epoch"
) -> Figure:
    """Mean probability of the training label over the epochs, with a line for each loss.

    Args:
        training: columns ``loss``, ``epoch``, ``mean_p_t`` (mean probability of the training label).
        losses, highlighted: as for :func:`metric_against_loss`.
        step: the name of the column ``epoch``, if it is another.

    Raises:
        ValueError: a column is missing, there are no rows, or a loss is none of ``losses``.
    """
    _check_columns("training", training, ("loss", step, "mean_p_t"))
    figure = theme.new_figure()
    steps = training[step].unique()
    few = len(steps) <= 15
    for name, arm in behind_first(arms := _arms_in(training, losses, highlighted)):
        rows = training[training["loss"] == name].sort_values(step)
        figure.add_scatter(
            **arm.trace(),
            x=rows[step].tolist(),
            y=rows["mean_p_t"].tolist(),
            mode="lines+markers" if few else "lines",
            hovertemplate=f"{arm.noun}<br>{step} %{{x}}<br>mean probability %{{y:.3f}}<extra></extra>",
        )
    theme.add_behind(figure, _behind(arms))
    return figure.update_layout(
        legend_title_text=kind_of(losses),
        xaxis={"title": {"text": step}, "tickformat": "d", **({"dtick": int(min(steps))} if few else {})},
        yaxis_title_text="mean probability of the training label",
    )


def reliability(bins: pd.DataFrame, losses: Mapping[str, Polynomial], highlighted: Collection[str] = ()) -> Figure:
    """Reliability diagrams of ``softmax`` (left) and ``poly_softmax`` (right), with a line for each loss.

    Below the diagonal, the model is overconfident. A marker's area is proportional to the number of rows in its bin.

    Args:
        bins: columns ``loss``, ``probabilities`` (``"softmax"`` or ``"poly_softmax"``), ``confidence`` (mean in the
            bin), ``accuracy``, ``rows`` (their number). Empty bins are left out.
        losses, highlighted: as for :func:`metric_against_loss`.

    Raises:
        ValueError: a column is missing, there are no rows, ``probabilities`` has another value, or a loss is none of
            ``losses``.
    """
    _check_columns("bins", bins, ("loss", "probabilities", "confidence", "accuracy", "rows"))
    panels = ("softmax", "poly_softmax")
    for kind in bins["probabilities"].unique():
        if kind not in panels:
            raise ValueError(f"probabilities must be 'softmax' or 'poly_softmax' in every row of bins; got {kind!r}.")
    bins = bins[bins["rows"] > 0]
    arms = _arms_in(bins, losses, highlighted)
    figure = theme.new_figure()
    for panel, axes in enumerate(({"xaxis": "x", "yaxis": "y"}, {"xaxis": "x2", "yaxis": "y2"})):
        figure.add_scatter(
            **axes,
            name="perfectly calibrated",
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": theme.GREY, "dash": "dot", "width": 1.5},
            legendrank=2000,  # below the losses
            showlegend=panel == 0,
            hoverinfo="skip",
        )
        for name, arm in behind_first(arms):
            rows = bins[(bins["loss"] == name) & (bins["probabilities"] == panels[panel])].sort_values("confidence")
            share = rows["rows"] / bins["rows"].max()
            figure.add_scatter(
                **axes,
                **arm.trace(size=(4 + 12 * share**0.5).tolist(), width=1.5)
                | {"showlegend": panel == 0 and arm.highlighted},
                x=rows["confidence"].tolist(),
                y=rows["accuracy"].tolist(),
                mode="lines+markers",
                legendgroup=name,
                customdata=rows["rows"].tolist(),
                hovertemplate=f"{arm.noun}<br>confidence %{{x:.3f}}<br>accuracy %{{y:.3f}}"
                "<br>rows %{customdata}<extra></extra>",
            )
    theme.add_behind(figure, _behind(arms))
    theme.set_panels(
        figure,
        ("confidence before: softmax", "accuracy"),
        ("confidence after: poly_softmax", "accuracy"),
    )
    unit = {"range": [-0.03, 1.03], "dtick": 0.2}
    return figure.update_layout(legend_title_text=kind_of(losses), xaxis=unit, xaxis2=unit, yaxis=unit, yaxis2=unit)


def recall_by_class(
    recall: pd.DataFrame, losses: Mapping[str, Polynomial], highlighted: Collection[str] = ()
) -> Figure:
    """Recall of each class, most frequent class first, with a colour for each loss.

    Args:
        recall: columns ``label``, ``training_rows``, ``loss``, ``recall`` (nan for a gap).
        losses, highlighted: as for :func:`metric_against_loss`.

    Raises:
        ValueError: a column is missing, there are no rows, or a loss is none of ``losses``.
    """
    _check_columns("recall", recall, ("label", "training_rows", "loss", "recall"))
    classes = recall.drop_duplicates("label").sort_values("training_rows", ascending=False, kind="stable")
    position = {label: i for i, label in enumerate(classes["label"])}
    arms = _arms_in(recall, losses, highlighted)
    few = len(position) <= 15
    figure = theme.new_figure()
    for k, (name, arm) in enumerate(behind_first(arms)):
        rows = recall[recall["loss"] == name]
        rows = rows.assign(position=rows["label"].map(position)).sort_values("position")
        offset = theme.marker_offset(k, len(arms), len(position)) if few else 0.0
        figure.add_scatter(
            **arm.trace(size=8 if few else 5, width=1),
            x=[i + offset for i in rows["position"]],
            y=rows["recall"].tolist(),
            mode="markers" if few else "lines+markers",
            text=[theme.escaped(label) for label in rows["label"]],
            customdata=rows["training_rows"].tolist(),
            hovertemplate=f"%{{text}}<br>{arm.noun}<br>recall %{{y:.3f}}"
            "<br>training rows %{customdata}<extra></extra>",
        )
    theme.add_behind(figure, _behind(arms))
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
        legend_title_text=kind_of(losses),
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


def shown(value: Any) -> str:
    """A parameter's value as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def behind_first(arms: Mapping[str, Arm]) -> list[tuple[str, Arm]]:
    """The losses in the order of drawing: what is drawn last lies above."""
    return sorted(arms.items(), key=lambda pair: pair[1].highlighted)


def _behind(arms: Mapping[str, Arm]) -> int:
    return sum(not arm.highlighted for arm in arms.values())


def _arms_in(frame: pd.DataFrame, losses: Mapping[str, Polynomial], highlighted: Collection[str]) -> dict[str, Arm]:
    """How the losses of a frame are drawn, in its order, or that of their epsilons."""
    names = frame["loss"].unique().tolist()
    unknown = [name for name in names if name not in losses]
    if unknown:
        raise ValueError(f"losses has no {unknown[0]!r}; it has {', '.join(losses)}.")
    arms = arms_of(losses, highlighted)
    order = names if kind_of(losses) == "loss" else [name for name in arms if name in names]
    return {name: arms[name] for name in order}


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
