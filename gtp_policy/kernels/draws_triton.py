"""Draws and minibatches of recorded updates: made on the device, from a few words per update.

A record is a row of words of 32 bits: number of updates done (low, high), N, where its grid begins,
N's binary digits, where u lies between s and t, three learning rates, one word unused, and two
words of key per seed. Tested through Triton's interpreter against `gtp_policy.kernels.philox`.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gtp_policy.kernels import draws_triton_kernel as kernel
from gtp_policy.kernels import philox, triton_launch
from gtp_policy.kernels.triton_launch import power_of_two

RATES = 6
"""Where learning rates begin in a record."""
_FIRST_KEY = 10


class Laws(NamedTuple):
    """How times are drawn, as the kernel takes it: see there."""

    law: int
    s_rule: int
    midpoint: bool
    max_gap: int
    linear: bool
    most: float
    edge: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    s_mean: float = 0.0
    s_std: float = 1.0


class Sizes(NamedTuple):
    """What is drawn for each of S seeds and B rows."""

    seeds: int
    batch: int
    jumps: int  # M, rows of the consistency loss
    actions: int  # A
    noise: int  # numbers per sampled action
    backup: int  # sampled actions per next observation
    baseline: int  # per observation
    guide: int  # numbers per guided action; 0: there are none
    flow: bool  # whether the flow loss has separate times


class Grids:
    """Every grid that times are drawn from, in one piece of memory.

    Args:
        nodes: By number of intervals N, (N + 1,) each, descending.
        masses: Cumulative masses of the nodes above 0, (N,) each, ascending in time.
        device: Where they are read.
    """

    def __init__(
        self, nodes: dict[int, Tensor], masses: dict[int, Tensor], device: torch.device
    ) -> None:
        self.offsets, at, padded = dict[int, int](), 0, []
        for n, grid in nodes.items():
            self.offsets[n] = at
            at += len(grid)
            padded.append(torch.cat([masses[n], masses[n].new_full((1,), 2.0)]))
        self.nodes = torch.cat([x.cpu() for x in nodes.values()] or [torch.zeros(1)]).to(device)
        self.masses = torch.cat([x.cpu() for x in padded] or [torch.zeros(1)]).to(device)
        self.levels = max(self.offsets, default=1).bit_length()


class Draws:
    """Buffers of one update's draws, and the kernel that fills them.

    Args:
        sizes: What is drawn.
        laws: How times are drawn.
        grids: Where from.
        like: On the device, of the networks' dtype.
        data: A dataset's rows, (size, W), of which to gather minibatches; None: they are given.
    """

    def __init__(
        self, sizes: Sizes, laws: Laws, grids: Grids, like: Tensor, data: Tensor | None
    ) -> None:
        self._sizes, self._laws, self._grids, self._data = sizes, laws, grids, data
        s, b, new = sizes.seeds, sizes.batch, like.new_empty
        self.backup = new(s, sizes.backup, b, sizes.noise)
        self.baseline = new(s, sizes.baseline, b, sizes.noise)
        self.guide, self.z = new(s, b, sizes.guide), new(s, b, sizes.actions)
        self.t, self.u, self.s = (new(s, sizes.jumps) for _ in range(3))
        self.tau = new(s, b if sizes.flow else 0)
        self.rows = new(s, b, 0 if data is None else data.shape[1])

    def fill(self, record: Tensor) -> None:
        """Draws an update's numbers.

        Args:
            record: Of the update, int32, on the device.
        """
        sizes, laws, grids = self._sizes, self._laws, self._grids
        tile = 16
        triton_launch.launch(
            kernel.draws,
            (-(-sizes.batch // tile), sizes.seeds),
            self.z,
            record,
            self.z if self._data is None else self._data,
            self.rows if self._data is not None else self.z,
            self.backup,
            self.baseline,
            self.guide,
            self.z,
            self.t,
            self.u,
            self.s,
            self.tau,
            grids.nodes,
            grids.masses,
            0 if self._data is None else len(self._data),
            sizes.jumps,
            sizes.batch,
            FIRST_KEY=_FIRST_KEY,
            ROWS=tile,
            WIDTH=self.rows.shape[2],
            PADDED_WIDTH=power_of_two(max(self.rows.shape[2], 1)),
            BACKUP=sizes.backup,
            BASELINE=sizes.baseline,
            NOISE=sizes.noise,
            PADDED_NOISE=power_of_two(sizes.noise),
            GUIDE=sizes.guide,
            PADDED_GUIDE=power_of_two(max(sizes.guide, 1)),
            ACT=sizes.actions,
            PADDED_ACT=power_of_two(sizes.actions),
            LAW=laws.law,
            LEVELS=grids.levels + 1,
            S_RULE=laws.s_rule,
            MIDPOINT=laws.midpoint,
            MAX_GAP=laws.max_gap,
            LINEAR=laws.linear,
            MOST=laws.most,
            EDGE=laws.edge,
            MEAN=laws.mean,
            STD=laws.std,
            S_MEAN=laws.s_mean,
            S_STD=laws.s_std,
            FLOW=sizes.flow,
        )


def words(
    update: int, intervals: int, offset: int, inner: float, rates: Sequence[float], keys: bytes
) -> bytes:
    """Returns the record of an update.

    Args:
        update: Number of updates done before it.
        intervals: N.
        offset: Where its grid begins in `Grids`.
        inner: Where u lies between s and t.
        rates: Learning rates, at most three.
        keys: Of `keys_of`.
    """
    three = [*rates, 0.0, 0.0, 0.0][:3]
    head = (update & 0xFFFFFFFF, update >> 32, intervals, offset, intervals.bit_length())
    return struct.pack("=IIIIIffffI", *head, inner, *three, 0) + keys


def keys_of(seeds: Sequence[int]) -> bytes:
    """Returns the keys of seeds as a record holds them."""
    return struct.pack(f"={len(seeds)}Q", *map(philox.key_of, seeds))


def record_length(seeds: int) -> int:
    """Returns the number of words of an update's record."""
    return _FIRST_KEY + 2 * seeds
