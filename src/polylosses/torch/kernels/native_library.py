"""The shared library compiled from cpu/: checked against its sources, and loaded."""

import ctypes
import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("_native.so")
SOURCES = sorted(PATH.with_name("cpu").glob("*.?pp"))

_REINSTALL = "pip install --force-reinstall --no-cache-dir --no-deps polylosses"
NOT_BUILT = (
    "its kernels were not built when polylosses was installed; that needs Linux and g++ or clang++. With these, "
    f"{_REINSTALL}; add -v to see what the compiler says"
)


def source() -> str:
    """The SHA-256 of the sources."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()


def load(structs: dict[str, Sequence[type[ctypes.Structure]]]) -> tuple[Any, str | None]:
    """The library, or None and the reason.

    Args:
        structs: those that the library declares in an array of sizes, by the array's name.
    """
    if not PATH.exists():
        return None, NOT_BUILT
    try:
        _check_whole(PATH)
        library = ctypes.CDLL(str(PATH))
        built_from = (ctypes.c_char * 64).in_dll(library, "polylosses_source").value.decode()
        for name, here in structs.items():
            sizes = (ctypes.c_int64 * len(here)).in_dll(library, name)
            if built_from != source() or list(sizes) != [*map(ctypes.sizeof, here)]:
                raise ValueError(f"{PATH} was built from another version")
    # Whatever lies there, `import polylosses.torch` must not fail for it.
    except (OSError, ValueError) as error:
        return None, f"its kernels can't be loaded ({error}). {_REINSTALL} builds them anew"
    return library, None


def _check_whole(path: Path) -> None:
    """Raises ValueError for a file that is no shared library or is truncated: loading it would end the process."""
    content = path.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        raise ValueError(f"{path} is no library of 64-bit Linux")
    order = "<" if content[5:6] == b"\x01" else ">"
    try:
        (first,) = struct.unpack_from(order + "Q", content, 32)
        size, count = struct.unpack_from(order + "HH", content, 54)
        # Where the parts that are loaded begin, and how long they are.
        parts = [struct.unpack_from(order + "Q16xQ", content, first + k * size + 8) for k in range(count)]
    except struct.error:
        parts = [(0, len(content) + 1)]
    if any(sum(part) > len(content) for part in parts):
        raise ValueError(f"{path} is cut off")
