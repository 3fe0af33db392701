"""Streams: a function of their name alone; the global generators are guarded by conftest."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_policy._random import generator_or_private, new_stream, stream_

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.integers(0, 2**62), names, st.integers(0, 2**62))
def test_a_stream_repeats_itself(seed: int, name: str, step: int) -> None:
    first, second = (torch.rand(4, generator=new_stream(seed, name, step)) for _ in range(2))
    assert torch.equal(first, second)


@given(st.integers(0, 2**30), names, st.integers(0, 2**30))
def test_neighbours_share_nothing(seed: int, name: str, step: int) -> None:
    streams = [
        new_stream(seed, name, step),
        new_stream(seed + 1, name, step),
        new_stream(seed, name, step + 1),
        new_stream(seed, name + "x", step),
    ]
    draws = torch.stack([torch.rand(8, generator=g) for g in streams])
    assert len(draws.unique()) == draws.numel()


def test_seed_name_and_step_do_not_run_into_each_other() -> None:
    parts_that_read_alike = ((1, "1a1", 1), (11, "a", 11), (11, "a1", 1), (1, "1a", 11))
    seeds = [new_stream(*parts).initial_seed() for parts in parts_that_read_alike]
    assert len(set(seeds)) == 4


@pytest.mark.slow
def test_streams_are_the_same_in_every_process() -> None:
    code = (
        "from gtp_policy._random import new_stream; print(new_stream(7, 'loss', 3).initial_seed())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == new_stream(7, "loss", 3).initial_seed()


def test_a_stream_restarts_a_used_generator() -> None:
    generator = torch.Generator()
    torch.rand(100, generator=generator)
    assert stream_(generator, 1, "a", 2) is generator
    expected = torch.rand(3, generator=new_stream(1, "a", 2))
    assert torch.equal(torch.rand(3, generator=generator), expected)


def test_the_private_generator_goes_on_and_the_callers_is_used() -> None:
    cpu = torch.device("cpu")
    first, second = (torch.rand(8, generator=generator_or_private(None, cpu)) for _ in range(2))
    assert not torch.equal(first, second)
    mine = torch.Generator()
    assert generator_or_private(mine, cpu) is mine
