"""What the README says is what happens."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]


def test_the_readme_has_code_and_commands() -> None:
    assert len(PYTHON) == 4
    assert [line.split(" && ")[-1].split()[0] for line in COMMANDS[:2]] == [".venv/bin/polylosses", ".venv/bin/python"]


def test_the_code_runs_in_the_order_it_is_read(tmp_path: Path) -> None:
    code = "\n".join(PYTHON)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "polylosses-iris" / "report.html").exists()


# The installing part of the first two is run by .ci/run.
@pytest.mark.parametrize("command", [line.split(" && ")[-1] for line in COMMANDS if "pytest" not in line])
def test_the_commands_run(command: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(command)
    here = Path(sys.executable).with_name(Path(program).name)
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [here, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:\]\(|src(?:set)?=\")(?!http)([^)\"]+)", README))))
def test_what_it_points_to_is_there(path: str) -> None:
    assert (Path(__file__).parent.parent / path).exists()
