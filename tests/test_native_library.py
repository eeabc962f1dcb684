"""If the compiled library is missing or broken, losses work without it, and asking for its kernels explains why."""

import _ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from polylosses.torch import poly_cross_entropy
from polylosses.torch.kernels import native, native_library
from test_torch_kernels import BUILT, needs_native

LOGITS, LABELS = [[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]], [0, 1]

# Runs in a child process, since a truncated library may crash it. Each path in turn is used as the library's path.
IMPORT = f"""
import importlib, json, sys
from pathlib import Path
import torch
from polylosses.torch import poly_cross_entropy
from polylosses.torch.kernels import native, native_library
for path in sys.argv[1:]:
    native_library.PATH = Path(path)
    importlib.reload(native)
    given = torch.tensor({LOGITS}), torch.tensor({LABELS})
    try:
        why = poly_cross_entropy(*given, implementation="native") and None
    except ValueError as error:
        why = str(error)
    print(json.dumps([poly_cross_entropy(*given).item(), why]), flush=True)
"""


def real() -> bytes:
    return native_library.PATH.read_bytes()


def replaced(old: bytes, new: bytes) -> bytes:
    assert old in real()
    return real().replace(old, new)


def of_another_processor() -> bytes:
    content = bytearray(real())
    content[18] = 62 if content[18] != 62 else 183  # x86-64 and aarch64
    return bytes(content)


def cut_to(share: float) -> Callable[[], bytes]:
    return lambda: real()[: int(share * len(real()))]


SOURCE = native_library.source().encode()
# (how to create the file, the expected error message)
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "not built when polylosses was installed"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "not built when polylosses was installed"),
    "a directory": (Path.mkdir, "Is a directory"),
    "an empty file": (Path.touch, "is no library"),
    "text": (lambda path: path.write_text("<html>404 Not Found</html>"), "is no library"),
    "a module of Python": (lambda path: path.write_bytes(Path(_ctypes.__file__).read_bytes()), "undefined symbol"),
}
if os.geteuid() != 0:
    OTHERS["unreadable"] = (lambda path: path.touch(mode=0), "Permission denied")
CHANGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "of another version": (lambda: replaced(SOURCE, SOURCE[::-1]), "was built from another version"),
    "of before the check": (lambda: replaced(b"polylosses_source", b"polylosses_s0urce"), "undefined symbol"),
    "in need of what is missing": (lambda: replaced(b"\0libc.so.6\0", b"\0libd.so.6\0"), "cannot open shared"),
    "of another processor": (of_another_processor, "can't be loaded"),
    **{f"{share} of it": (cut_to(share), "cut off") for share in (1e-3, 0.01, *(k / 10 for k in range(1, 10)))},
}


def test_the_library_here_is_of_the_source_here() -> None:
    """If this fails, the library is stale and every kernel test is skipped: install polylosses again."""
    assert native._WHY_NONE in (None, native_library.NOT_BUILT)


def test_what_is_not_the_library_whole_and_of_this_version_is_not_used(tmp_path: Path) -> None:
    expected = {}
    for name, (put, said) in OTHERS.items():
        put(tmp_path / name)
        expected[name] = said
    if BUILT:
        for name, (content, said) in CHANGED.items():
            (tmp_path / name).write_bytes(content())
            expected[name] = said
        (tmp_path / "it").write_bytes(real())
        expected["it"] = ""
    paths = [str(tmp_path / name) for name in expected]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, *paths], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    plain = poly_cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS), implementation="plain").item()
    for (name, said), line in zip(expected.items(), done.stdout.splitlines(), strict=True):
        found, why = json.loads(line)
        if name == "it":
            assert why is None
            assert abs(found - plain) < 1e-6
        else:
            assert found == plain, name
            assert said in why, name
            assert why.startswith("implementation='native' can't serve here"), name
            assert "pip install --force-reinstall" in why, name


@needs_native
def test_structs_of_another_size_are_another_version() -> None:
    assert native_library.load({"polylosses_softmax_sizes": (native._Logits,)})[1] is None
    assert "another version" in str(native_library.load({"polylosses_softmax_sizes": (native._Polynomial,)})[1])
    assert "undefined symbol" in str(native_library.load({"polylosses_sizes": (native._Logits,)})[1])
