"""Errors meant for people: one line that says what was given, what was needed, and what to do."""

from __future__ import annotations


class StableVideoError(ValueError):
    """Base of every error this package raises on purpose. The command line prints it and exits with code 2."""


class CheckpointError(StableVideoError):
    """A checkpoint that cannot be used: wrong family, damaged, incomplete, or not a format we read."""


class InputError(StableVideoError):
    """A picture, tensor or setting outside what the pipeline accepts."""


class OutputError(StableVideoError):
    """A result that cannot be written where or how it was asked for."""


class PrecisionWarning(UserWarning):
    """Something was worked out again in higher precision: the result is right and took longer."""
