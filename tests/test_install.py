"""setup.py with compilers that support all, some or none of its flags.

It builds a few lines of C++ instead of the kernels, which take half a minute.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")
SETUP = Path(__file__).parent.parent / "setup.py"
GXX = shutil.which("g++")
SOURCE = """
extern "C" {
char source[] = POLYLOSSES_SOURCE;
#ifdef _OPENMP
int parallel = 1;
#else
int parallel = 0;
#endif
#ifdef POLYLOSSES_PROCESSORS
const char* processors[] = {POLYLOSSES_PROCESSORS};
#else
const char* processors[] = {"one"};
#endif
}
"""
# A compiler that fails if an argument or a source line matches.
COMPILER = """#!/bin/sh
for argument; do
    if printf '%s\\n' "$argument" | grep -qE -e '{refused}'; then exit 1; fi
    case "$argument" in *.cpp) if grep -qE -e '{refused}' "$argument"; then exit 1; fi ;; esac
done
exec g++ "$@"
"""
OF_X86 = platform.machine() == "x86_64"
# (pattern of what the compiler refuses, (whether OpenMP is used, the first target)). None: the library isn't built.
COMPILERS = {
    "takes all": ("no such text", (1, "arch=x86-64-v4")),
    "GCC 11 without OpenMP": ("^-fopenmp$|x86-64-v3", (0, "avx512f")),
    "takes what is standard": ("^-f(no-[mt]|openmp)|target_clones", (0, "one")),
    "fails in the end": ("-DPOLYLOSSES_SOURCE", None),
    "takes nothing": (".", None),
}


def build(directory: Path, refused: str) -> tuple[Path, str]:
    """Builds the wheel, and returns its path and the output."""
    compiler = directory / "compiler"
    compiler.write_text(COMPILER.format(refused=refused))
    compiler.chmod(0o755)
    shutil.rmtree(directory / "dist", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel"],
        cwd=directory,
        env=os.environ | {"CC": str(compiler), "CXX": str(compiler)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (wheel,) = (directory / "dist").iterdir()
    return wheel, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux" or GXX is None, reason="needs Linux and g++")
@pytest.mark.parametrize(
    "compiler",
    [
        pytest.param(name, marks=[] if name in ("GCC 11 without OpenMP", "takes nothing") else pytest.mark.slow)
        for name in COMPILERS
    ],
)
def test_a_wheel_has_what_the_compiler_takes_and_says_what_it_lacks(compiler: str, tmp_path: Path) -> None:
    refused, expected = COMPILERS[compiler]
    package = tmp_path / "src" / "polylosses" / "torch" / "kernels"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "cpu").mkdir()
    (package / "cpu" / "native.cpp").write_text(SOURCE)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'polylosses'\nversion = '1'\n")
    shutil.copy(SETUP, tmp_path)
    if compiler == "fails in the end":
        assert "any" not in build(tmp_path, "no such text")[0].name  # the next build must not reuse this library
    wheel, said = build(tmp_path, refused)
    with zipfile.ZipFile(wheel) as files:
        files.extractall(tmp_path / "installed")
    (tag,) = [line for line in next(tmp_path.glob("installed/*/WHEEL")).read_text().splitlines() if line[:4] == "Tag:"]
    libraries = list((tmp_path / "installed").rglob("*.so"))
    assert wheel.stem.endswith(tag.removeprefix("Tag: "))
    assert ("NOT built" in said) == (expected is None)
    if expected is None:
        assert tag == "Tag: py3-none-any"
        assert libraries == []
        return
    assert tag.startswith("Tag: py3-none-linux_")
    assert libraries == [tmp_path / "installed" / "polylosses" / "torch" / "kernels" / "_native.so"]
    library = ctypes.CDLL(str(libraries[0]))
    source = hashlib.sha256(SOURCE.encode()).hexdigest()
    assert (ctypes.c_char * 64).in_dll(library, "source").value.decode() == source
    parallel, processor = expected
    assert ctypes.c_int.in_dll(library, "parallel").value == parallel
    assert ctypes.c_char_p.in_dll(library, "processors").value == (processor if OF_X86 else "one").encode()
    assert ("refuses -fopenmp: the CPU kernels will be on one thread" in said) == (not parallel)
