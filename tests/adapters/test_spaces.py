"""Spaces as bounds and layouts: one rule for all hosts, and no gymnasium where numbers suffice."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box

from gtp_datasets.spaces import (
    action_scaler,
    action_scaler_of,
    box_of,
    check_dataset,
    has_parts,
    layout_of,
    same_vectors,
)
from gtp_policy import ActionScaler, ObservationLayout, OfflineDataset
from gtp_policy.errors import DataError, UnsupportedSpaceError

MIXED = spaces.Dict(b=Box(-1, 1, (3,)), a=Box(0, 1, (2, 2)), c=spaces.Discrete(4))


def test_a_d4rl_file_needs_no_gymnasium() -> None:
    code = """
import sys, tempfile
sys.modules["gymnasium"] = None  # what an import finds that is not there
import gtp_datasets, gtp_datasets.spaces
assert not {"h5py", "minari"} & set(sys.modules)
import h5py, numpy as np
with tempfile.NamedTemporaryFile(suffix=".hdf5") as path:
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((2, 1)), np.zeros((2, 3))
        file["rewards"], file["terminals"] = np.ones(2), np.array([0, 1], bool)
        file["timeouts"] = np.zeros(2, bool)
    print(gtp_datasets.load_d4rl_hdf5(path.name, high=[1, 2, 3]).action_scaler)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(ActionScaler([-1.0] * 3, [1.0, 2.0, 3.0]))


def test_bounds_given_replace_those_of_the_space() -> None:
    box = Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]))
    assert action_scaler_of(box, low=-3, high=[3, 4]) == ActionScaler([-3, -3], [3, 4])
    assert action_scaler(-1, [[1, 2], [3, 4]], (2, 2)) == ActionScaler([-1] * 4, [1, 2, 3, 4])
    assert box_of(action_scaler_of(Box(-2, 2, (1, 3)))) == Box(-2, 2, (3,))


@pytest.mark.parametrize(
    ("space", "low", "message"),
    [
        (spaces.Discrete(3), None, "expected a bounded Box"),
        (Box(-np.inf, 1, (2,)), None, "dimension 0 is unbounded"),
        (Box(-1, 1, (2,)), [-1, -1, -1], r"got low \(3,\) and high \(2,\)"),
        (Box(-1, 1, (2,)), 1, "has no range"),
    ],
)
def test_bounds_that_do_not_fit_are_refused_with_the_hosts_advice(
    space: Any, low: Any, message: str
) -> None:
    with pytest.raises(UnsupportedSpaceError, match=f"{message}.* Do this.$"):
        action_scaler_of(space, low, advice="Do this.")


def test_a_host_says_which_parts_have_a_shape() -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"part 'c' does not fit: got Discrete\(4\)"):
        layout_of(MIXED)
    assert layout_of(MIXED, ["b", "a"]).keys == ("b", "a")

    def shape_of(part: Any) -> tuple[int, ...]:
        return part.shape or (1,)

    whole = layout_of(MIXED, shape_of=shape_of)
    assert whole == ObservationLayout({"a": (2, 2), "b": (3,), "c": (1,)})
    assert has_parts(MIXED, whole, shape_of=shape_of)
    assert not has_parts(MIXED, whole)
    assert layout_of(spaces.Discrete(4), shape_of=shape_of) == ObservationLayout((1,))


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ({"b": (3,)}, True),
        ({"b": (3,), "a": (2, 2)}, True),
        ({"b": (4,)}, False),
        ({"d": (3,)}, False),
        ((7,), False),
    ],
)
def test_a_layout_fits_if_the_space_has_its_parts(shapes: Any, fits: bool) -> None:
    assert has_parts(MIXED, ObservationLayout(shapes)) == fits


def test_the_vector_of_a_plain_array_does_not_depend_on_its_shape() -> None:
    assert same_vectors(ObservationLayout((2, 3)), ObservationLayout((6,)))
    assert same_vectors(ObservationLayout((2, 1, 3)), ObservationLayout((2, 3)))
    assert not same_vectors(ObservationLayout((2, 3)), ObservationLayout((3, 2)))  # turned
    assert not same_vectors(ObservationLayout((2, 3)), ObservationLayout((5,)))
    assert not same_vectors(ObservationLayout({"a": (6,)}), ObservationLayout((6,)))
    one, two = {"a": (1,), "b": (1,)}, {"b": (1,), "a": (1,)}
    assert same_vectors(ObservationLayout(one), ObservationLayout(one))
    assert not same_vectors(ObservationLayout(one), ObservationLayout(two))


def test_a_dataset_fits_or_the_difference_is_named() -> None:
    dataset = OfflineDataset.from_arrays(
        obs=np.zeros((1, 4)),
        action=[[0.0]],
        reward=[0.0],
        terminated=[1],
        truncated=[0],
        low=[0.0],
        high=[0.1],
        gamma=0.9,
    )
    layout, scaler = ObservationLayout((2, 2)), ActionScaler([0.0], [np.float32(0.1)])
    check_dataset(dataset, layout, scaler, 0.9)
    with pytest.raises(DataError, match="observations of the dataset do not fit"):
        check_dataset(dataset, ObservationLayout({"a": (4,)}), scaler, 0.9)
    with pytest.raises(DataError, match="other units"):
        check_dataset(dataset, layout, ActionScaler([0.0], [0.2]), 0.9)
    with pytest.raises(DataError, match=r"`gamma` of the dataset .* got 0.9, expected 0.99"):
        check_dataset(dataset, layout, scaler, 0.99)
