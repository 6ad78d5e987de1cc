"""What the command lines of the prior share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from headlift.errors import HeadliftError


def run_command(main: Callable[[], object]) -> None:
    """Run a command line and end with its exit code; errors of the user are printed, not raised."""
    try:
        main()
    except HeadliftError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag that is a whole number of at least so much."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number
