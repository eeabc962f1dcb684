"""Checks the README and the pages in docs/: code blocks run, links resolve, numbers are the measured ones."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


COMMANDS = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().split()) <= 600


def test_the_first_commands_set_up_and_run_the_tuner_and_the_tests() -> None:
    assert [line.split(" && ")[-1].split()[0] for line in COMMANDS[:2]] == [".venv/bin/polylosses", ".venv/bin/python"]
    assert [line for line in COMMANDS if "-m venv" in line] == COMMANDS[:2]
    assert COMMANDS[1] in (ROOT / "CONTRIBUTING.md").read_text()


WITH_CODE = [
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("torch", "jax", "keras", "boosting", "tuning", "tune-your-code", "language-models")
    ),
]
# What the code of a page needs beside [dev].
NEEDS = {
    "docs/language-models.md": ("trl",),
    "docs/boosting.md": ("xgboost", "lightgbm", "catboost"),
    "docs/tuning.md": ("xgboost",),
}


def test_the_pages_with_code_are_known() -> None:
    with_code = {page for page in PAGES if blocks(page, "python")}
    assert with_code - {ROOT / "docs" / "coming-from.md"} == {ROOT / name for name in WITH_CODE}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "README.md" else pytest.mark.slow) for name in WITH_CODE]
)
def test_the_code_of_a_page_runs(name: str, tmp_path: Path) -> None:
    for package in NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    quick = "import polylosses.tune.batched as _batched; _batched.MINIMUM_STEPS = 20"
    code = "\n".join([quick if "tuning" in name else "", *blocks(ROOT / name, "python")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if name == "docs/tuning.md":
        assert (tmp_path / "polylosses-iris" / "report.html").exists()


@pytest.mark.parametrize("command", [line for line in COMMANDS[2:] if line.startswith(".venv/bin/polylosses")])
def test_the_commands_run(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    here = Path(sys.executable).with_name(Path(program).name)
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [here, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_a_page_points_to_is_there(page: Path) -> None:
    targets = re.findall(r"(?:\]\(|src(?:set)?=\")(?!http)([^)\"]+)", page.read_text())
    for target in targets:
        path, _, heading = target.partition("#")
        pointed = (page.parent / path) if path else page
        assert pointed.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", pointed.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, target


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def times(file: str, link: str) -> list[str]:
    """The lines of a table: one for each loss, with its time at every shape, and peak memory at the second if known."""
    measured = [result for result in results(file)["results"] if result["link"] == link]

    def size(result: Any) -> tuple[Any, ...]:
        return (*result["shape"], result.get("dtype"))

    sizes = list(dict.fromkeys(map(size, measured)))
    lines = []
    for name in dict.fromkeys(result["loss"] for result in measured):
        of = {size(result): result for result in measured if result["loss"] == name}
        cells = ["fails" if of[at]["wrong"] else f"{of[at]['time_ratio']:.2f}" for at in sizes]
        if any("peak_bytes" in result for result in measured if size(result) == sizes[1]):
            cells.append(f"{of[sizes[1]]['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in of[sizes[1]] else "")
        lines.append(" | ".join(["", *cells, ""]))
    return lines


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_its_times_are_in_the_results(link: str) -> None:
    lines = times("losses", link)
    assert len(lines) >= 8
    for line in lines:
        assert line.strip() in BENCHMARKS


def test_its_times_of_recipes_are_in_the_results() -> None:
    recipes = list(dict.fromkeys(result["link"] for result in results("recipes")["results"]))
    assert len(recipes) == 14
    for recipe in recipes:
        for line in times("recipes", recipe):
            assert line.strip() in BENCHMARKS, recipe


def test_its_simulated_studies_are_in_the_results() -> None:
    laws = results("sequential")["laws"]
    assert len(laws) == 10
    for law, false, *numbers in (one.values() for one in laws):
        cells = [f"{number:.{digits}f}" for number, digits in zip(numbers, (1, 2, 1, 2, 1, 3, 2), strict=True)]
        assert f"| {law} | {false:.3f} | {' | '.join(cells)} |" in BENCHMARKS
        assert false <= 0.05 or law == "very skewed (exponential)"
        assert numbers[0] <= 14  # seeds without a difference
        assert numbers[1] >= 0.75
        assert numbers[4] <= 12


def curvatures() -> list[str]:
    """The lines of the tables of boosting: of curvatures, and of known probabilities."""
    found = results("boosting_curvature")
    rows, names = found["results"], list(dict.fromkeys(row["curvature"] for row in found["results"]))
    lines = []
    for library, loss in dict.fromkeys((row["library"], row["loss"]) for row in rows):
        of = {row["curvature"]: row for row in rows if (row["library"], row["loss"]) == (library, loss)}

        def line(what: str, cell: Any, of: dict[str, Any] = of) -> str:
            return " | ".join([f"| {what}", *(cell(of[name]) if name in of else "" for name in names)]) + " |"

        who = f"{library}, all losses" if loss == "all" else f"{library}, {loss}"
        lines.append(line(who, lambda row: f"{row['best']:.2f} ({row['final']:.2f})"))
        if loss == "all":
            size = next(iter(of.values()))["trainings"]
            lines.append(line(f"better, worse; of {size}", lambda row: f"{row['better']}, {row['worse']}"))
            lines.append(
                line("as good as the first column, after", lambda row: f"{row['reached']:.0%}, {row['rounds']:.0f}")
            )
            lines.append(line("training loss rose", lambda row: f"{row['rises']}"))
    for loss in dict.fromkeys(row["loss"] for row in found["known"]):
        of_loss = [row for row in found["known"] if row["loss"] == loss]
        plain = [row for row in found["known"] if row["loss"] == "cross-entropy"]
        least = {(row["library"], row["classes"]): row["posterior"] for row in plain}
        libraries = ["XGBoost", "LightGBM", "CatBoost"]
        order = sorted(of_loss, key=lambda row: (libraries.index(row["library"]), row["classes"]))
        cells = [(row, least[row["library"], row["classes"]]) for row in order]
        shown = [f"{row['posterior'] / by:.2f} ({row['softmax'] / by:.2f})" for row, by in cells]
        lines.append(f"| {loss} | {' | '.join(shown)} |")
    return lines


def test_its_curvatures_of_boosting_are_in_the_results() -> None:
    lines = curvatures()
    assert len(lines) >= 30
    for line in lines:
        assert line in BENCHMARKS
    everywhere = {
        (r["library"], r["curvature"]): r for r in results("boosting_curvature")["results"] if r["loss"] == "all"
    }
    assert not any(everywhere[library, "expected"]["rises"] for library in ("XGBoost", "LightGBM", "CatBoost"))
    alone = everywhere["LightGBM", "second derivative"]
    assert f"{alone['rises']} of {alone['trainings']} training losses rose" in BENCHMARKS


def boosting_times() -> list[str]:
    """The lines of the table of training times: a line for each objective, a column for each library and classes."""
    rows = results("boosting")["results"]
    columns = list(dict.fromkeys((row["library"], row["classes"]) for row in rows))
    lines = []
    for name in dict.fromkeys(row["objective"] for row in rows):
        of = {(row["library"], row["classes"]): row for row in rows if row["objective"] == name}
        shown = "ms" if name == "built in" else "ratio"
        cells = [f"{of[at][shown]:.{0 if shown == 'ms' else 2}f}" if at in of else "" for at in columns]
        lines.append(f"| {name}{', ms a round' if shown == 'ms' else ''} | {' | '.join(cells)} |")
    return lines


def test_its_times_of_boosting_are_in_the_results() -> None:
    lines = boosting_times()
    assert len(lines) >= 5
    for line in lines:
        assert line in BENCHMARKS
    differences = [row["largest_difference"] for row in results("boosting")["results"] if row["largest_difference"]]
    assert len(differences) == 8
    assert max(differences) < 1e-5


def test_its_costs_of_trials_are_in_the_results() -> None:
    rows = results("study_overhead")["results"]
    sizes = list(dict.fromkeys(row["trials"] for row in rows))
    assert f"| trials in | {' | '.join(f'{size} trials' for size in sizes)} |" in BENCHMARKS
    assert len(rows) == 6 * len(sizes)
    for storage, processes in {(row["storage"], row["processes"]) for row in rows}:
        of = [row for row in rows if (row["storage"], row["processes"]) == (storage, processes)]
        assert [row["trials"] for row in of] == sizes
        who = f"{processes} worker{'s' * (processes > 1)}" if processes else "this process"
        cells = [f"{row['ms']:.0f} ({row['cpu_ms']:.1f})" for row in of]
        assert f"| {storage}, {who} | {' | '.join(cells)} |" in BENCHMARKS


def test_the_readmes_range_is_that_of_the_table() -> None:
    ratios = [r["time_ratio"] for r in results("losses")["results"] if (r["link"], r["loss"]) == ("softmax", "Poly-1")]
    assert f"{min(ratios):.2f} to {max(ratios):.2f} of the time" in README.read_text()


def test_its_times_in_jax_are_in_the_results() -> None:
    for size in ("1024 x 1000", "1024 x 21843", "512 x 50257", "65536 x 21"):
        rows, classes = map(int, size.split(" x "))
        measured = "class indices", rows, classes
        found = results("jax_losses")["results"]
        of = {r["loss"]: r for r in found if (r["kind"], r["rows"], r["classes"]) == measured}
        poly = of["optax poly"]
        times = [of[name]["time_ratio"] for name in ("Poly-1", "focal 0.5", "Poly-3")] + [poly["time_ratio"]]
        kept = [max(of[name]["kept_in_logits"] for name in ("Poly-1", "focal 0.5", "Poly-3")), poly["kept_in_logits"]]
        shown = " | ".join(f"{number:.2f}" for number in times + kept)
        assert f"| {size} | {shown} |" in BENCHMARKS
    others = [
        result for result in results("jax_losses")["results"] if result["kind"] not in ("class indices", "sigmoid")
    ]
    named = ("Poly-1", "Poly-3", "focal 2", "optax poly")
    for kind, loss in dict.fromkeys((result["kind"], result["loss"]) for result in others if result["loss"] in named):
        ratios = [result["time_ratio"] for result in others if (result["kind"], result["loss"]) == (kind, loss)]
        assert " | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |" in BENCHMARKS, (kind, loss)
    sweep = results("jax_sweep")["results"]
    for seconds in (sweep["seconds_jax"], sweep["seconds_jax_compiling"], sweep["seconds_torch"]):
        assert f"{seconds:.1f} s" in BENCHMARKS


def test_its_memory_and_times_of_heads_are_in_the_results() -> None:
    measured = results("linear_head")
    for head, shown in (
        ("poly_from_nll(F.linear_cross_entropy)", "poly_from_nll(F.linear_cross_entropy(...))"),
        ("linear_poly_cross_entropy", "linear_poly_cross_entropy"),
    ):
        memory = [
            f"{(m['peak_bytes'] - m['gradient_bytes']) / 1e6:.0f} MB" for m in measured["memory"] if m["head"] == head
        ]
        (time,) = (t for t in measured["time"] if t["head"] == head)
        times = f"{time['ratio']:.2f} ({min(time['ratios']):.2f} to {max(time['ratios']):.2f})"
        assert f"| `{shown}` | {memory[0]} | {memory[1]} | {times} |" in BENCHMARKS
