"""Randomness without global state: explicit generators, and streams that need no saving.

The package never reads or writes the global generators of torch, numpy or Python. A draw comes from
a generator the caller passes, or from a stream that is a function of (seed, name, step): resuming
at step n needs no record of what was drawn before.
"""

import functools
import hashlib

import torch

from gtp_policy._numbers import plain_int


def stream_(generator: torch.Generator, seed: int, name: str, step: int) -> torch.Generator:
    """Points a generator at the start of the stream ``(seed, name, step)`` and returns it.

    A hash spreads the three parts over 63 bits, so that neighbouring seeds and steps share nothing.
    """
    digest = hashlib.blake2b(f"{plain_int(seed)}/{name}/{step}".encode(), digest_size=8).digest()
    return generator.manual_seed(int.from_bytes(digest, "little") >> 1)


def new_stream(
    seed: int, name: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Returns a fresh generator at the start of the stream ``(seed, name, step)``."""
    return stream_(torch.Generator(device), seed, name, step)


@functools.cache
def _private(device: str) -> torch.Generator:
    return new_stream(0, "private", device=device)


def generator_or_private(
    generator: torch.Generator | None, device: torch.device
) -> torch.Generator:
    """Returns the caller's generator, or the package's own one for that device.

    The private one starts at the same place in every process: a script that passes no generator
    still repeats itself, and global generators stay where the user left them.
    """
    if generator is None:
        return _private(str(device))
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"`generator` has the wrong type: got {type(generator).__name__}, expected a "
            "torch.Generator, e.g. learner.stream('noise')."
        )
    return generator
