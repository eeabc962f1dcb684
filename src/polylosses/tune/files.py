"""Writing files whole or not at all."""

import tempfile
from pathlib import Path


def write_files(files: dict[str, str], directory: Path) -> None:
    """Write files to a directory; none appears there before all are complete."""
    with tempfile.TemporaryDirectory(prefix=".polylosses-", dir=directory) as unfinished:
        for name, text in files.items():
            # Names of files may have bytes that are no UTF-8.
            Path(unfinished, name).write_text(text, encoding="utf-8", errors="backslashreplace")
        for name in files:
            Path(unfinished, name).replace(directory / name)
