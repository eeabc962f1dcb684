"""The plan of a study: its losses, points and trials; and the choice from what came of them."""

import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import polylosses
from polylosses.tune import analysis, space
from polylosses.tune.plan import CROSS_ENTROPY, Outcome, Plan, by_name


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1e-4:1e-1:log", FloatDistribution(1e-4, 0.1, log=True)),
        ("0:0.5", FloatDistribution(0, 0.5)),
        ("16:256:log", IntDistribution(16, 256, log=True)),
        ("1:4", IntDistribution(1, 4)),
        ("0.0,0.1, 0.3", CategoricalDistribution([0.0, 0.1, 0.3])),
        ("adam,sgd", CategoricalDistribution(["adam", "sgd"])),
        ("True,None,2", CategoricalDistribution([True, None, 2])),
    ],
)
def test_text_is_a_distribution(text: str, right: Any) -> None:
    assert space.distribution("x", text) == right
    assert space.distribution("x", right) is right


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("a:b", "two numbers"),
        ("1:2:lin", "LOW:HIGH:log"),
        ("1:inf", "two numbers"),
        ("2:1", "must rise"),
        ("0:1:log", "above 0"),
        ("", "one or more values"),
        ("1,,2", "one or more values"),
        ([], "one or more values"),
        ([1, 1], "must differ"),
        ([math.nan], "finite"),
        ([object()], "numbers, text, booleans or None"),
        (3, "ranges such as"),
    ],
)
def test_what_is_no_distribution_is_refused_by_name(given: Any, error: str) -> None:
    with pytest.raises((ValueError, TypeError), match=error) as caught:
        space.distribution("rate", given)
    assert "rate" in str(caught.value)


def test_points_are_spread_over_the_space() -> None:
    found = {
        "rate": space.distribution("rate", "1e-4:1e-1:log"),
        "width": space.distribution("width", "1:4"),
        "kind": space.distribution("kind", "a,b"),
    }
    points = space.points(found, 64, seed=3)
    assert points == space.points(found, 64, seed=3) != space.points(found, 64, seed=4)
    # Of a sequence that is spread evenly: as many in each decade, width and kind, up to one or two.
    decades = np.histogram(np.log10([point["rate"] for point in points]), bins=[-4, -3, -2, -1])[0]
    assert decades.tolist() == pytest.approx([64 / 3] * 3, abs=2)
    assert [sum(point["width"] == width for point in points) for width in (1, 2, 3, 4)] == pytest.approx(
        [16] * 4, abs=2
    )
    assert sum(point["kind"] == "a" for point in points) == pytest.approx(32, abs=2)
    assert all(one._contains(one.to_internal_repr(point[name])) for point in points for name, one in found.items())


def test_few_combinations_are_all_points() -> None:
    found = {"a": space.distribution("a", [1, 2, 3]), "b": space.distribution("b", ["x", "y"])}
    assert len(space.points(found, 8, 0)) == 6
    assert len({(point["a"], point["b"]) for point in space.points(found, 6, 0)}) == 6
    assert len(space.points(found, 5, 0)) == 5
    assert space.points({}, 8, 0) == [{}]
    stepped = {"c": FloatDistribution(0, 1, step=0.25), "d": IntDistribution(2, 8, step=3)}
    points = space.points(stepped, 50, 0)
    assert {point["c"] for point in points} == {0, 0.25, 0.5, 0.75, 1}
    assert {point["d"] for point in points} == {2, 5, 8}


def test_names_of_losses() -> None:
    found = by_name([polylosses.poly1(2.0), "focal(2)", polylosses.cross_entropy()])
    assert list(found) == [CROSS_ENTROPY, "-log p + 2 (1 - p)", "focal(2)"]
    assert found["focal(2)"] == polylosses.focal(2.0)
    assert list(by_name({"mine": polylosses.focal(1.0)})) == [CROSS_ENTROPY, "mine"]
    for wrong, error in (
        ([], "at least one other than cross-entropy"),
        (["cross_entropy"], "at least one other"),
        (["nothing"], "no loss of the catalogue"),
        ([2.0], "must be polynomials"),
        (["focal(2)", "focal(2)"], "two losses are called 'focal\\(2\\)'"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            by_name(wrong)  # type: ignore[arg-type]


PLAN = Plan(by_name(["poly1(2)", "focal(2)"]), [{"rate": 0.1}, {"rate": 0.2}], repeats=4, most_seeds=8, seed=5)


def test_all_losses_and_points_of_a_repeat_share_its_seed() -> None:
    trials = PLAN.selection()
    assert len({trial.key for trial in trials}) == len(trials) == 3 * 2 * 4
    assert [trial.repeat for trial in trials] == sorted(trial.repeat for trial in trials)
    assert len({(trial.repeat, trial.seed) for trial in trials}) == 4
    assert len({trial.seed for trial in trials}) == 4
    assert all(dict(trial.parameters) == PLAN.points[trial.point] for trial in trials)
    first = trials[0]
    assert first.epsilon == 0.0
    assert PLAN.trial("selection", "poly1(2)", 0, 0).epsilon == 2.0
    with pytest.raises(AttributeError, match=r"focal\(2\) has no single epsilon: use trial.polynomial"):
        _ = PLAN.trial("selection", "focal(2)", 0, 0).epsilon
    with pytest.raises(TypeError):
        first.parameters["rate"] = 1  # type: ignore[index]


def outcomes(score: Any) -> dict[str, Outcome]:
    """The outcomes of the selection, by a function of loss, point and repeat; None for a failure."""
    found = {}
    for trial in PLAN.selection():
        value = score(trial.loss, trial.point, trial.repeat)
        found[trial.key] = Outcome(math.nan, error="broke") if value is None else Outcome(value)
    return found


def test_every_loss_takes_its_best_point() -> None:
    means = {CROSS_ENTROPY: (0.8, 0.9), "poly1(2)": (0.95, 0.7), "focal(2)": (0.5, 0.6)}
    found = analysis.select(
        PLAN, outcomes(lambda loss, point, repeat: means[loss][point] + repeat / 100), maximize=True
    )
    assert found.chosen == {CROSS_ENTROPY: 1, "poly1(2)": 0, "focal(2)": 1}
    assert found.candidate == "poly1(2)"
    less = analysis.select(PLAN, outcomes(lambda loss, point, repeat: means[loss][point]), maximize=False)
    assert less.chosen == {CROSS_ENTROPY: 0, "poly1(2)": 1, "focal(2)": 0}
    assert less.candidate == "focal(2)"
    table = analysis.table(PLAN, found)
    assert table.loss.tolist() == [CROSS_ENTROPY, "poly1(2)", "focal(2)"]
    assert table.rate.tolist() == [0.2, 0.1, 0.2]
    assert table.difference.tolist() == pytest.approx([0, 0.05, -0.3])


def test_intervals_count_on_splits_that_overlap() -> None:
    shape = len(PLAN.losses), len(PLAN.points), PLAN.repeats
    found = analysis.Selection(dict.fromkeys(PLAN.losses, 0), "focal(2)", np.random.default_rng(0).normal(size=shape))
    half, wider = (
        (one.difference_high - one.difference)[1:]
        for one in (analysis.table(PLAN, found), analysis.table(PLAN, found, overlap=1 / 3))
    )
    np.testing.assert_allclose(wider / half, np.sqrt(1 + PLAN.repeats / 3))


def test_failures_are_left_out_on_both_sides() -> None:
    def score(loss: str, point: int, repeat: int) -> float | None:
        if point == 1 and repeat > 0:
            return None  # most of its repeats: the point does not count
        if (loss, repeat) in (("poly1(2)", 3), (CROSS_ENTROPY, 2)):
            return None
        return 0.9 + repeat / 10 + 0.05 * (loss == "poly1(2)") + point

    found = analysis.select(PLAN, outcomes(score), maximize=True)
    assert set(found.chosen.values()) == {0}
    row = analysis.table(PLAN, found).set_index("loss").loc["poly1(2)"]
    assert row.difference == pytest.approx(0.05)  # over the repeats that both have
    assert row.repeats == 3
    with pytest.raises(ValueError, match="most trainings with every other loss failed: broke"):
        analysis.select(PLAN, outcomes(lambda loss, *_: 1.0 if loss == CROSS_ENTROPY else None), maximize=True)
    with pytest.raises(ValueError, match="most trainings with cross-entropy failed"):
        analysis.select(PLAN, outcomes(lambda loss, *_: None if loss == CROSS_ENTROPY else 1.0), maximize=True)


def test_the_confirmation_goes_on_look_by_look() -> None:
    done = outcomes(lambda loss, point, repeat: 0.9 + (loss == "poly1(2)"))
    rng = np.random.default_rng(0)
    seen = []
    while True:
        trials, _, confirmation = analysis.next_trials(PLAN, done, True, fixed=False)
        if not trials:
            break
        assert {trial.loss for trial in trials} == {CROSS_ENTROPY, "poly1(2)"}
        assert {trial.stage for trial in trials} == {"confirmation"}
        assert min(trial.repeat for trial in trials) == PLAN.repeats  # fresh seeds
        seen.append(len(trials) // 2)
        done |= {
            t.key: Outcome(float(rng.normal() + 1.2 * (t.loss != CROSS_ENTROPY))) for t in trials if t.key not in done
        }
    assert seen == [5, 6, 8][: len(seen)]
    assert len(seen) > 1
    assert confirmation is not None
    assert analysis.seeds_of(confirmation) == seen[-1]
    fixed = outcomes(lambda loss, point, repeat: 0.9 + (loss == "poly1(2)"))
    assert len(analysis.next_trials(PLAN, fixed, True, fixed=True)[0]) == 16


def test_pairs_of_rows() -> None:
    selection = analysis.Selection({CROSS_ENTROPY: 0, "poly1(2)": 1}, "poly1(2)", np.zeros(0))
    rows = {(4, True): [1.0, 2.0], (4, False): [0.0, 1.0], (5, True): [1.0, 2.0, 3.0], (5, False): [0.0, 0.0]}
    done = {}
    for (repeat, candidate), given in rows.items():
        trial = PLAN.trial("confirmation", "poly1(2)" if candidate else CROSS_ENTROPY, int(candidate), repeat)
        done[trial.key] = Outcome(float(np.mean(given)), np.array(given))
    a, b = analysis.paired(PLAN, done, selection, 2)
    assert a[0].tolist() == [1, 2]
    assert b[0].tolist() == [0, 1]
    assert np.isnan(a[1]).all()  # an array of another length is left out
    assert np.isnan(b[1]).all()
