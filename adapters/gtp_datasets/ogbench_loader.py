"""OGBench's files and what its own function returns, read with NumPy alone."""

import math
import os
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from gtp_datasets._hdf5 import located, table_bytes
from gtp_datasets._npz import open_npz, read_npz
from gtp_datasets.spaces import action_scaler
from gtp_policy import ObservationLayout, OfflineDataset
from gtp_policy.dataset_builder import OfflineDatasetBuilder, as_array, as_flags
from gtp_policy.episodes import scaler_of
from gtp_policy.errors import DataError, EmptyDatasetError

REQUIRED = ("observations", "actions", "terminals")
LABELS = ("rewards", "masks")
OPTIONAL = ("next_observations", "valids")


def load_ogbench(
    dataset_or_path: Mapping[str, npt.ArrayLike] | str | os.PathLike[str],
    *,
    split: Literal["train", "validation"] = "train",
    gamma: float = 0.99,
    low: npt.ArrayLike = -1.0,
    high: npt.ArrayLike = 1.0,
    out_of_bounds: Literal["error", "clip"] = "error",
    unbounded: Literal["error", "data"] = "error",
    device: torch.device | str = "cpu",
) -> OfflineDataset:
    """Reads a single-task dataset of OGBench; builds no environment and downloads nothing.

    OGBench's ``terminals`` mark where a trajectory was cut: they become ``truncated``, never
    ``terminated``. What ends a task is its ``masks``: rows with mask 0 are those in whose state the
    goal is reached, and become ``terminated``. A trajectory goes on behind them.

    Two layouts are understood. A *file* has one row per state; the last of a trajectory, where
    ``terminals`` is set, has no successor and is left out. What ``make_env_and_datasets`` *returns*
    has ``next_observations``, and ``terminals`` at the last transition of a trajectory.

    OGBench's own files hold neither rewards nor masks, which depend on the task: take what
    ``make_env_and_datasets`` returns for a name with ``singletask``, or add both to the file.

    Args:
        dataset_or_path: One of the two datasets that ``make_env_and_datasets`` returns, or the path
            of an npz file with ``rewards`` and ``masks`` besides OGBench's fields.
        split: Whether to read the file itself or its twin ``...-val.npz`` with validation data.
        gamma: Discount factor, in [0, 1].
        low: Lower bounds of the actions, shape (A,) or a scalar: OGBench's files do not hold them.
        high: Upper bounds of the actions, shape (A,) or a scalar.
        out_of_bounds: Whether actions outside the bounds raise or are clipped.
        unbounded: Whether an infinite bound raises, or takes the limits of the data, with a
            warning.
        device: Where the table lives.

    Returns:
        The dataset, actions scaled to [-1, 1]; images are flattened, and its ``layout`` keeps
        their shape.

    Raises:
        DataError: If the file cannot be read, or a field is missing or of the wrong type, shape or
            value (field and row are named), or ``split`` does not fit.
        EmptyDatasetError: If no transition is left.
        UnsupportedSpaceError: If the bounds are no Box.

    References:
        | OGBench: Benchmarking Offline Goal-Conditioned RL (Park et al., 2025)
        | https://arxiv.org/abs/2410.20092

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from gtp_datasets import load_ogbench
        >>> with tempfile.NamedTemporaryFile(suffix=".npz") as path:
        ...     np.savez(path, observations=np.zeros((4, 2)), actions=np.zeros((4, 1)),
        ...              rewards=[-1.0, -1.0, 0.0, 0.0], masks=[1.0, 1.0, 0.0, 0.0],
        ...              terminals=[0.0, 0.0, 0.0, 1.0])
        ...     dataset = load_ogbench(path.name)
        >>> dataset.transitions.discount
        tensor([0.9900, 0.9900, 0.0000])
        >>> dataset.truncated
        array([False, False,  True])
    """
    if not isinstance(split, str) or split not in ("train", "validation"):
        raise DataError(f"`split` is unknown: got {split!r}, expected 'train' or 'validation'.")
    if isinstance(dataset_or_path, Mapping):
        if split != "train":
            raise DataError(
                f"`split` does not fit: got {split!r} with a dataset, expected a path. Pass the "
                "other one that make_env_and_datasets returns."
            )
        wanted = REQUIRED + LABELS + OPTIONAL
        fields = {
            name: as_array(name, dataset_or_path[name])
            for name in wanted
            if name in dataset_or_path
        }
        source = "OGBench"
    else:
        path = located(dataset_or_path)
        if split == "validation":
            path = path.with_name(f"{path.stem}-val{path.suffix}")
        with open_npz(path) as file:
            _check_names(file.names)
        fields = read_npz(path, REQUIRED + LABELS + OPTIONAL, _made_of)
        source = f"OGBench {path.name}"
    obs, next_obs, kept, truncated = _transitions(fields)
    size = len(fields["observations"])
    masks = as_flags("masks", fields["masks"], size)
    layout = ObservationLayout(obs.shape[1:])
    actions = fields["actions"]
    scaler = (
        scaler_of([actions], low, high, unbounded)
        if unbounded != "error"
        else action_scaler(low, high, actions.shape[1:])
    )
    builder = OfflineDatasetBuilder(
        int(kept.sum()),
        obs_dim=layout.obs_dim,
        action_scaler=scaler,
        gamma=gamma,
        out_of_bounds=out_of_bounds,
    )
    builder.extend(
        obs=obs.reshape(len(obs), -1),
        action=actions.reshape(len(actions), -1)[kept],
        reward=fields["rewards"][kept],
        terminated=~masks[kept],
        truncated=truncated,
        ends=truncated,  # behind a goal the trajectory goes on
        next_obs=next_obs.reshape(len(next_obs), -1),
    )
    return OfflineDataset.from_builder(builder, device=device, layout=layout, source=source)


def _made_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many bytes a dataset takes that is made of fields of these shapes."""
    (rows, *obs), action = shapes.get("observations") or (0,), shapes.get("actions", ())
    obs_dim = math.prod(obs)
    # Both ends of each transition are copied, in a dtype of 16 bytes at most.
    return table_bytes(rows, obs_dim, math.prod(action[1:])) + 2 * rows * obs_dim * 16


def _transitions(
    fields: Mapping[str, npt.NDArray[np.generic]],
) -> tuple[
    npt.NDArray[np.generic],
    npt.NDArray[np.generic],
    npt.NDArray[np.bool_],
    npt.NDArray[np.bool_],
]:
    """Returns observations, next observations, which rows are transitions, and where one is cut."""
    _check_fields(fields)
    obs = fields["observations"]
    terminals = as_flags("terminals", fields["terminals"], len(obs))
    if "next_observations" in fields:
        next_obs = fields["next_observations"]
        if next_obs.shape != obs.shape:
            raise DataError(
                f"`next_observations` has the wrong shape: got {next_obs.shape}, expected "
                f"{obs.shape} as `observations`."
            )
        return obs, next_obs, np.ones(len(obs), np.bool_), terminals
    if not len(obs) or not terminals[-1]:
        raise DataError(
            f"`terminals` leaves the end open: got no flag at row {len(obs) - 1}, the last, "
            "expected the end of a trajectory there. Cut the file at its last `terminals`."
        )
    kept = ~terminals
    if not kept.any():
        raise EmptyDatasetError(
            f"No transition is left: got {len(obs)} rows that each end a trajectory, expected "
            "trajectories of two states and more."
        )
    following = np.flatnonzero(kept) + 1
    return obs[kept], obs[following], kept, terminals[following]


def _check_names(fields: Collection[str]) -> None:
    for name in REQUIRED + LABELS:
        if name in fields:
            continue
        advice = (
            "They belong to a task: pass what ogbench.make_env_and_datasets returns for a name "
            "with `singletask`, or write a file with them."
            if name in LABELS
            else "Is this a file of OGBench? load_npz reads those with other fields."
        )
        raise DataError(
            f"`{name}` is missing: got the fields {sorted(fields)}, expected "
            f"{', '.join(REQUIRED + LABELS)}. {advice}"
        )
    if "valids" in fields and "next_observations" not in fields:
        raise DataError(
            "`valids` belongs to OGBench's compact layout: got it without `next_observations`, "
            "expected a file or the usual layout. Pass compact_dataset=False to "
            "make_env_and_datasets."
        )


def _check_fields(fields: Mapping[str, npt.NDArray[np.generic]]) -> None:
    _check_names(fields)
    rows = fields["observations"].shape[:1]
    for name in ("observations", "actions"):
        shape = fields[name].shape
        if len(shape) < 2 or shape[:1] != rows:
            raise DataError(
                f"`{name}` has the wrong shape: got {shape}, expected one array per row, as many "
                f"rows as the {rows[0] if rows else 0} observations."
            )
    if fields["rewards"].shape != rows:
        raise DataError(
            f"`rewards` has the wrong shape: got {fields['rewards'].shape}, expected {rows}."
        )
