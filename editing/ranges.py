"""Lists of numbers and ranges, as users write them."""

from __future__ import annotations

from headlift.errors import ConfigError

MOST = 4096
"""Numbers in a list."""
LONGEST = 20
"""Digits of a number; Python refuses to read thousands."""


def parse_ranges(text: str, what: str, below: int) -> tuple[int, ...]:
    """Numbers below `below` from a list such as `0-3,7`, in its order; `what` (a plural) names them in messages.

    Raises:
        ConfigError: it is no such list, names too large a number or too many, or a range is empty.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        # Not isdigit, which takes superscripts too.
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"{what} {text[:80]!r} are not a list like 0-3 or 0,2,5-7")
        whole = max(len(first), len(last)) <= LONGEST
        low, high = (int(first), int(last or first)) if whole else (0, below)
        if high >= below:
            raise ConfigError(f"{what} {text[:80]!r}: there are {what} 0 to {below - 1}")
        if high < low or len(numbers) + high - low >= MOST:
            raise ConfigError(f"{what} {text[:80]!r}: the range {part.strip()[:80]!r} is empty or too large")
        numbers.extend(range(low, high + 1))
    return tuple(numbers)
