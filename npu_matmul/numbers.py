"""Numbers as they are printed."""

from __future__ import annotations


def three_digits(value: float) -> str:
    """
    >>> [three_digits(value) for value in (0.0345, 7.0, 177.0, 1234.5)]
    ['0.0345', '7.00', '177', '1234']
    """
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def seconds_text(seconds: float) -> str:
    """
    >>> [seconds_text(seconds) for seconds in (0.000123, 0.5, 1.5, 1234.5)]
    ['0.123 ms', '500 ms', '1.50 s', '1,234.50 s']
    """
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{three_digits(seconds * 1e3)} ms"
