"""Packages that only some options need."""

from __future__ import annotations


class MissingExtra(ValueError):
    """A package that an option needs is not installed; the message has the command that cures
    it."""
