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


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the host, could not give memory. PyTorch says it in three ways: a class of its own on CUDA,
    and in words on MPS and on the CPU."""
    told = str(error)
    return type(error).__name__ == "OutOfMemoryError" or "out of memory" in told or "can't allocate memory" in told


class PrecisionWarning(UserWarning):
    """Something was worked out again in higher precision: the result is right and took longer."""
