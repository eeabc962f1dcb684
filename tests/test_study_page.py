"""The figures and files of a study, and the same from its storage alone."""

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from polylosses import catalogue, theme
from polylosses.tune import StudyResult, Trial, figures, studies, study, study_figures
from polylosses.tune.sequential import confirm
from polylosses.tune.store import read
from postgresql import Server, needs_postgresql

FILES = ("results.json", "results.csv", "report.html")
OPTIONS: dict[str, Any] = {
    "epsilons": [1.0],
    "losses": ["focal(2)"],
    "parameters": {"rate": "1e-4:1e-1:log", "kind": ["a", None, True, 0.5]},
    "points": 3,
    "repeats": 4,
}
OF_SELECTION = 3 * 3 * 4


def stored(storage: str | Path, name: str | None = None) -> StudyResult:
    return studies.stored(read(storage, name))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.stop()


def train(trial: Trial) -> dict[str, Any]:
    """Stands for a training: the same numbers for the same trial."""
    name = sum(map(ord, trial.loss))
    if (trial.stage, trial.loss, trial.point, trial.repeat) == ("selection", "focal(2)", 1, 2):
        raise RuntimeError("CUDA <b>out of memory</b> at %{x}")
    shared = np.random.default_rng(trial.seed).normal(0, 0.02)
    own = np.random.default_rng([trial.seed, name, trial.point]).normal(0, 0.01, 200)
    mean = 0.8 + shared + 0.02 * getattr(trial, "epsilon", 0.0) - 0.01 * (math.log10(trial.parameters["rate"]) + 2) ** 2
    return {"validation": mean + own[0], "test": mean - 0.1 + own[1] + own}


def stopped_after(calls: int) -> Callable[[Trial], Any]:
    done = iter(range(calls))

    def interrupted(trial: Trial) -> Any:
        if next(done, None) is None:
            raise KeyboardInterrupt
        return train(trial)

    return interrupted


def written(result: StudyResult, directory: Path) -> dict[str, bytes]:
    result.write(directory)
    return {name: (directory / name).read_bytes() for name in FILES}


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


def one_score(trial: Trial) -> Any:
    return train(trial)["validation"]


@pytest.mark.parametrize("function", [train, one_score])
def test_a_report_from_the_storage_alone_is_what_the_study_wrote(
    function: Callable[[Trial], Any], tmp_path: Path
) -> None:
    result = study(function, storage=tmp_path / "study", name="a", **OPTIONS)
    before = written(result, tmp_path / "then")
    kept = contents(tmp_path / "study")
    for folder in (tmp_path / "study", tmp_path):
        os.chmod(folder, 0o555)
    try:
        found = stored(tmp_path / "study")
    finally:
        for folder in (tmp_path / "study", tmp_path):
            os.chmod(folder, 0o755)
    assert found.name == "a"
    assert written(found, tmp_path / "now") == before
    assert contents(tmp_path / "study") == kept


def test_a_report_of_a_study_that_draws_the_splits(tmp_path: Path) -> None:
    y = np.arange(90) % 3

    def classifier(trial: Trial) -> Any:
        assert trial.score_rows is not None
        rng = np.random.default_rng(trial.seed)
        return np.eye(3)[y[trial.score_rows]] * (1 + trial.epsilon) + rng.normal(size=(len(trial.score_rows), 3))

    options: dict[str, Any] = {"epsilons": [1.0], "repeats": 2, "labels": y, "metric": "log_loss"}
    before = written(study(classifier, storage=tmp_path, **options), tmp_path / "then")
    found = stored(tmp_path)
    assert written(found, tmp_path / "now") == before
    heading, (figure, _) = next(iter(found.figures.items()))
    assert heading == "Log loss against epsilon"
    assert figure.layout.yaxis.title.text == "log loss on validation data<br>(lower is better)"


@needs_postgresql
def test_a_report_from_a_database(server: Server, tmp_path: Path) -> None:
    before = written(study(train, storage=server.address, name="a", **OPTIONS), tmp_path / "then")
    assert written(stored(server.address), tmp_path / "now") == before
    with pytest.raises(KeyboardInterrupt):
        study(stopped_after(5), storage=server.address, name="b", **OPTIONS)
    with_password = server.address.replace("postgres@", "postgres:secret@")
    with pytest.raises(
        ValueError, match=r"postgres:\*\*\*@.* has several studies: give a name \(--name\), one of 'a', 'b'"
    ):
        stored(with_password)
    with pytest.raises(ValueError, match=r"postgres has no study 'c'; it has 'a', 'b'"):
        stored(server.address, "c")
    assert stored(server.address, "b").sentence.startswith("Not finished: 5 of")


# Of a study that stops after some trainings: what it says, and its figures.
PARTS: dict[int, tuple[str, set[str]]] = {
    0: (f"Not finished: 0 of {OF_SELECTION} trainings of the selection are done.", {"The losses"}),
    1: (f"Not finished: 1 of {OF_SELECTION} trainings of the selection are done.", {"Trainings over time"}),
    20: (f"Not finished: 20 of {OF_SELECTION} trainings of the selection are done.", {"Score against loss"}),
    OF_SELECTION + 4: ("Not finished: 3 of 10 trainings of the confirmation are done.", {"Score against loss"}),
    OF_SELECTION + 12: (
        "Not finished: 11 of 12 trainings of the confirmation are done.",
        {"The confirmation, look by look"},
    ),
}


@pytest.mark.parametrize("calls", PARTS)
def test_what_is_known_of_a_study_that_has_not_finished(calls: int, tmp_path: Path) -> None:
    sentence, headings = PARTS[calls]
    with pytest.raises(KeyboardInterrupt):
        study(stopped_after(calls), storage=tmp_path, **OPTIONS)
    found = stored(tmp_path)
    assert (found.verdict, found.sentence) == ("not finished", sentence)
    assert headings <= set(found.figures)
    assert ("What the hyper-parameters do" in found.figures) == (calls >= 20)
    assert not any("use cross-entropy" in note for note in found.notes)
    files = written(found, tmp_path)
    assert "better" not in json.loads(files["results.json"])["sentence"]
    assert '<strong class="undecided">Not finished</strong>' in files["report.html"].decode()
    # The training that fails is run twice.
    done = calls - (calls > OF_SELECTION)
    assert len(pd.read_csv(tmp_path / "results.csv")) == len(found.trials) == done


def test_a_study_that_can_not_choose_has_a_report(tmp_path: Path) -> None:
    def fails(trial: Trial) -> float:
        return math.nan if trial.loss == "cross-entropy" else 1.0

    with pytest.raises(ValueError, match="most trainings with cross-entropy failed"):
        study(fails, storage=tmp_path, **OPTIONS)
    found = stored(tmp_path)
    assert found.sentence.startswith("Not finished: most trainings with cross-entropy failed: it returned nan")
    assert set(found.figures) == {"Trainings over time", "The losses"}
    assert len(found.to_html()) > 1000


def test_where_there_is_no_study_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.db").touch()
    for storage, said in (
        (tmp_path / "nowhere", "there is no folder .*nowhere"),
        (tmp_path / "empty", "empty has no study.journal: it is empty"),
        (tmp_path, "has no study.journal: it has empty, empty.db, notes.txt"),
        (f"sqlite:///{tmp_path}/no.db", "there is no database .*no.db"),
        (f"sqlite:///{tmp_path}/empty.db", "empty.db has no study: it has no tables"),
        ("postgresql+psycopg://me:secret@127.0.0.1:1/x", "the storage can't be used .*refused"),
        ("mysql+nodriver://x/y", "the storage can't be used"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            stored(storage)
        assert "secret" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "empty.db", "notes.txt"]
    assert not (tmp_path / "empty.db").stat().st_size
    study(train, storage=tmp_path, name="mine", **OPTIONS)
    with pytest.raises(ValueError, match="has no study 'yours'; it has 'mine'"):
        stored(tmp_path, "yours")


@pytest.mark.parametrize("name", ["score", "point", "seconds", "difference"])
def test_parameters_do_not_take_the_place_of_a_column(name: str) -> None:
    with pytest.raises(ValueError, match=f"a parameter can't be called '{name}', which is a column"):
        study(train, epsilons=[1.0], parameters={name: [1, 2]})


def test_the_first_figure_has_the_trials_at_the_chosen_points() -> None:
    result = study(train, seed=1, **OPTIONS)
    assert result.table.rate.nunique() == 3
    figure, caption = result.figures["Score against loss"]
    assert "diamond is the confirmation" in caption
    for row in result.table.to_dict("records"):
        dots, mean = (trace for trace in figure.data if trace.name == row["loss"] and trace.showlegend is False)
        assert len(dots.x) == row["repeats"]
        assert np.mean(dots.x) == pytest.approx(row["score"]) == pytest.approx(mean.x[0])
        assert f"rate {row['rate']:.3g}" in mean.hovertemplate


@pytest.mark.parametrize("maximize", [True, False])
def test_the_regions_of_a_look_are_where_the_study_stops(maximize: bool) -> None:
    """A difference in a region, of the same spread, stops the study with what the region says."""
    rng = np.random.default_rng(0)
    noise = np.concatenate([rng.gamma(1.0, 1.0, 9), rng.normal(size=11)])  # skewed, up to the first look
    noise -= noise[:9].mean()
    first = confirm(noise + 10, 20).looks[0]
    low, high = first.undecided
    assert low < first.futile_low < 0 < first.futile_high < high
    assert -low != pytest.approx(high, rel=0.05)
    edge = 1e-6
    for difference, decides in (
        (high + edge, True),
        (high - edge, False),
        (low - edge, True),
        (low + edge, False),
        (first.futile_high - edge, True),
        (first.futile_high + edge, False),
        (first.futile_low + edge, True),
        (first.futile_low - edge, False),
    ):
        assert confirm(noise[:9] + difference, 20).looks[0].decides == decides, difference
    looks = pd.DataFrame([vars(first) | {"undecided_low": low, "undecided_high": high}])
    arm = figures.arms_of({"cross-entropy": catalogue.cross_entropy(), "poly1(1)": catalogue.poly1(1.0)})["poly1(1)"]
    bars = {
        t.name: t for t in study_figures.differences_at_looks(looks, (9, 20), arm, maximize).data if t.type == "bar"
    }
    above, below = ("better", "worse") if maximize else ("worse", "better")
    assert bars[f"verdict: {above}"].base[0] == high
    assert bars[f"verdict: {below}"].base[0] + bars[f"verdict: {below}"].y[0] == pytest.approx(low)
    assert bars["no use in more seeds"].base[0] == first.futile_low
    assert bars["verdict: better"].marker.color == theme.COLOURS[-1.0]


def test_the_caption_counts_the_looks() -> None:
    figure, caption = study(train, **OPTIONS | {"epsilons": [0.45]}).figures["The confirmation, look by look"]
    assert next(trace for trace in figure.data if trace.error_y.array).x == (5, 6)
    assert "2 of 3 possible looks, of at most 8 seeds" in caption
    assert "holds whatever look the study stops at" in caption
    assert figure.layout.xaxis.tickvals == (5, 6, 8)
    figure, caption = study(train, fixed=True, **OPTIONS).figures["The confirmation, look by look"]
    assert "with all 8 fresh seeds" in caption
    assert "whatever look" not in caption


def test_each_parameter_has_a_panel_with_its_scale() -> None:
    result = study(train, **OPTIONS)
    figure, caption = result.figures["What the hyper-parameters do"]
    assert "the same 3 points" in caption
    assert figure.layout.xaxis.type == "log"
    assert figure.layout.xaxis.ticktext == ("0.0001", "0.001", "0.01", "0.1")
    assert figure.layout.xaxis2.ticktext == ("a", "None", "True", "0.5")
    means = result.trials[result.trials.stage == "selection"].groupby(["loss", "point"]).score.mean()
    for trace in (trace for trace in figure.data if trace.xaxis == "x" and trace.customdata is not None):
        assert sorted(trace.y) == pytest.approx(sorted(means[trace.name]))
        (star,) = [x for x, symbol in zip(trace.x, trace.marker.symbol, strict=True) if symbol == "star"]
        assert star == result.parameters[trace.name]["rate"]
    (focal,) = [trace for trace in figure.data if trace.xaxis == "x2" and trace.name == "focal(2)"]
    assert sorted(repeats for _, repeats in focal.customdata) == [3, 4, 4]
    kinds = [(["a", None, True, 0.5][round(x)], shown) for x, (shown, _) in zip(focal.x, focal.customdata, strict=True)]
    assert all(str(kind) == shown for kind, shown in kinds)
    assert "What the hyper-parameters do" not in study(lambda trial: 0.5, epsilons=[1.0], repeats=2).figures


def trainings(count: int, seconds: float = 20.0, hours: float = 3.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    elapsed = pd.to_timedelta(np.linspace(0, 3600e6 * hours, count).astype(int), "us")
    started = pd.Timestamp("2026-03-01 20:00", tz="UTC") + elapsed
    return pd.DataFrame(
        {
            "stage": np.where(np.arange(count) < 0.8 * count, "selection", "confirmation"),
            "loss": "focal(2)",
            "repeat": 0,
            "score": 0.5,
            "error": np.where(np.arange(count) % 10 == 9, "RuntimeError: <i>no memory</i> " + "at %{y} " * 40, ""),
            "tries": 1,
            "worker": "host-7:4711:abcd",
            # Workers on machines of other time zones.
            "started": [t.tz_convert("Asia/Tokyo" if k % 2 else "UTC").to_pydatetime() for k, t in enumerate(started)],
            "seconds": seconds * rng.lognormal(0, 0.1, count),
            "rate": 0.1,
        }
    )


def test_every_training_is_a_dot_when_it_ran_and_a_failed_one_a_cross_with_its_error() -> None:
    figure = study_figures.trainings_over_time(trainings(20), ["rate"])
    names = {trace.name: trace for trace in figure.data}
    assert set(names) == {"selection (15)", "confirmation (3)", "failed (2)"}
    assert names["failed (2)"].marker.symbol == "x"
    assert all("RuntimeError: &lt;i&gt;no memory" in text for text in names["failed (2)"].text)
    assert all("%{" not in text and len(text) < 700 for text in names["failed (2)"].text)
    assert all("host-7:4711<br>" in text and "rate 0.1" in text for trace in figure.data for text in trace.text)
    assert figure.layout.xaxis.title.text == "hours since the first training started"
    assert max(names["confirmation (3)"].x) == pytest.approx(3.0 * 18 / 19)
    assert figure.layout.yaxis.type is None
    few = study_figures.trainings_over_time(trainings(20, hours=1 / 60).assign(seconds=[0.1] * 19 + [90.0]))
    assert few.layout.xaxis.title.text == "seconds since the first training started"
    assert few.layout.yaxis.type == "log"


@pytest.mark.parametrize(("number", "kind"), [(5000, "scatter"), (5001, "scattergl")])
def test_thousands_of_trainings_are_few_traces(number: int, kind: str) -> None:
    assert [trace.type for trace in study_figures.trainings_over_time(trainings(number)).data] == [kind] * 3


def test_trainings_of_which_it_is_not_known_when_they_ran_are_counted() -> None:
    result = study(train, **OPTIONS)
    trials = result.trials.assign(started=result.trials.started.astype(object))
    trials.loc[3, "started"] = None
    found = study_figures.captioned(
        result.table, trials, result.parameters, result.candidate, result.confirmation, result.settings
    )
    figure, caption = found["Trainings over time"]
    assert sum(len(trace.x) for trace in figure.data) == len(trials) - 1
    assert "Of 1 it is not known when they ran" in caption
