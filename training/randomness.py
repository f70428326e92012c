"""Counter-based random numbers for training: the draws of sample k do not depend on anything before it.

No random state has to be saved to resume, and a clip's noise does not depend on how many processes share a batch.
"""

from __future__ import annotations

import hashlib
import json

import torch


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed from a path such as (seed, "video", 12). Equal paths give equal seeds on every machine."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A generator on the CPU, seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(*parts))


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """Uniform random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
