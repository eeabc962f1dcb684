"""The command, as ``python -m polylosses``."""

from polylosses.cli import main

if __name__ == "__main__":
    main()
