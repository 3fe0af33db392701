"""Action boxes and observation scales."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import NonFiniteError, ShapeError, UnsupportedSpaceError
from gtp_policy.spaces import ObservationNormalizer

bounds = st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(0.0009765625, 1e4, width=32)).map(
    lambda pair: (pair[0], float(np.float32(pair[0] + pair[1])))
)
boxes = st.lists(bounds.filter(lambda b: b[0] < b[1]), min_size=1, max_size=4)
DTYPES = [np.float32, np.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@given(boxes, st.integers(0, 2**32))
def test_actions_return_from_the_unit_box(
    dtype: type, box: list[tuple[float, float]], seed: int
) -> None:
    low, high = np.array(box, dtype=dtype).T
    scaler = ActionScaler(low, high)
    rng = np.random.default_rng(seed)
    action = np.clip(rng.uniform(low, high, size=(5, len(box))).astype(dtype), low, high)
    unit = scaler.to_unit(action)
    # Rounding counts in units of the bounds, which may lie far from 0 and near each other.
    scale = np.maximum(np.abs(low), np.abs(high)) / (high - low)
    slack = 8 * np.finfo(dtype).eps * (1 + scale)
    assert unit.dtype == action.dtype
    assert (np.abs(unit) <= 1 + slack).all()
    back = scaler.to_box(unit)
    assert back.dtype == action.dtype
    assert (np.abs(back - action) <= slack * (high - low)).all()
    as_tensor = scaler.to_unit(torch.from_numpy(action))
    np.testing.assert_allclose(as_tensor.numpy(), unit, atol=slack.max())


@pytest.mark.parametrize("dtype", DTYPES)
@given(boxes, st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=5))
def test_an_action_never_leaves_the_box(
    dtype: type, box: list[tuple[float, float]], units: list[float]
) -> None:
    low, high = np.array(box, dtype=dtype).T
    unit = np.array([[-1.0], [1.0], *([u] for u in units)], dtype=dtype).repeat(len(box), 1)
    for action in (
        ActionScaler(low, high).to_box(unit),
        ActionScaler(low, high).to_box(torch.from_numpy(unit)).numpy(),
    ):
        assert (action >= low).all()
        assert (action <= high).all()


def test_the_upper_bound_is_the_boxs_own() -> None:
    # In float32, low + (high - low) is above high here.
    low, high = np.float32(-5.0), np.float32(-1.6)
    assert low + (high - low) > high
    assert ActionScaler([low], [high]).to_box(np.ones(1, np.float32))[0] == high


def test_dimensions_are_scaled_by_their_own_range() -> None:
    scaler = ActionScaler([-2.0, 0.0, 5.0], [2.0, 10.0, 6.0])
    assert scaler.action_dim == 3
    assert scaler.to_unit(np.array([-2.0, 5.0, 6.0])).tolist() == [-1.0, 0.0, 1.0]
    assert scaler.to_box(np.array([[1.0, -1.0, 0.0]])).tolist() == [[2.0, 0.0, 5.5]]
    assert scaler.to_unit(np.array([4.0, 20.0, 5.0])).tolist() == [2.0, 3.0, -1.0]  # not clipped
    assert scaler.to_unit(np.array([2, 10, 6])).tolist() == [1.0, 1.0, 1.0]  # integers
    assert scaler == ActionScaler([-2, 0, 5], [2, 10, 6])
    assert scaler != ActionScaler([-2, 0, 5], [2, 10, 7])
    assert scaler != "scaler"
    assert repr(scaler) == "ActionScaler(low=[-2.0, 0.0, 5.0], high=[2.0, 10.0, 6.0])"


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([-1.0, -np.inf], [1.0, 1.0], "dimension 1 is unbounded: got low=-inf"),
        ([-1.0], [np.nan], "dimension 0 is unbounded"),
        ([np.finfo(np.float32).min], [np.finfo(np.float32).max], "dimension 0 is unbounded"),
        ([0.0, 1.0], [1.0, 1.0], "dimension 1 has no range"),
        ([1.0], [-1.0], "dimension 0 has no range"),
        ([[0.0]], [[1.0]], "wrong shape: got low"),
        ([0.0], [1.0, 2.0], "wrong shape: got low"),
        ([], [], "wrong shape: got low"),
        (0.0, 1.0, "wrong shape: got low"),
    ],
)
def test_boxes_that_cannot_be_served(low: object, high: object, message: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=message):
        ActionScaler(low, high)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
def test_actions_have_the_boxs_dimension(shape: tuple[int, ...]) -> None:
    scaler = ActionScaler([0.0, 0.0], [1.0, 1.0])
    for function in (scaler.to_unit, scaler.to_box):
        for action in (np.zeros(shape), torch.zeros(shape)):
            with pytest.raises(ShapeError, match="`action` has the wrong last dimension"):
                function(action)


# --- observations


def test_observations_get_mean_zero_and_std_one(generator: torch.Generator) -> None:
    obs = torch.randn(500, 3, generator=generator) * torch.tensor([1e-3, 1.0, 50.0]) + 7.0
    normalizer = ObservationNormalizer(3)
    assert torch.equal(normalizer(obs), obs)  # before its statistics are set
    out = normalizer.set_statistics_(obs.mean(0), obs.std(0, correction=0))(obs)
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3), atol=2e-3, rtol=0)


def test_a_constant_dimension_is_only_centred() -> None:
    normalizer = ObservationNormalizer(2).set_statistics_(
        torch.tensor([3.0, 3.0]), torch.tensor([0.0, 9e-7])
    )
    assert normalizer(torch.tensor([[4.0, 4.0]])).tolist() == [[1.0, 1.0]]


def test_statistics_live_in_the_state() -> None:
    known = ObservationNormalizer(1).set_statistics_(torch.ones(1), torch.full((1,), 2.0))
    fresh = ObservationNormalizer(1)
    fresh.load_state_dict(known.state_dict())
    assert fresh(torch.tensor([[5.0]])).item() == 2.0
    assert copy.deepcopy(known)(torch.tensor([[5.0]])).item() == 2.0
    assert not list(known.parameters())


@pytest.mark.parametrize(
    ("mean", "std", "error"),
    [
        (torch.zeros(3), torch.ones(2), ShapeError),
        (torch.zeros(2), torch.ones(2, 1), ShapeError),
        (torch.zeros(()), torch.ones(2), ShapeError),
        (torch.tensor([0.0, torch.nan]), torch.ones(2), NonFiniteError),
        (torch.zeros(2), torch.tensor([1.0, torch.inf]), NonFiniteError),
        (torch.zeros(2), torch.tensor([1.0, -1.0]), NonFiniteError),
    ],
)
def test_bad_statistics_change_nothing(
    mean: torch.Tensor, std: torch.Tensor, error: type[Exception]
) -> None:
    normalizer = ObservationNormalizer(2)
    with pytest.raises(error):
        normalizer.set_statistics_(mean, std)
    assert torch.equal(normalizer.mean, torch.zeros(2))
    assert torch.equal(normalizer.scale, torch.ones(2))


# --- observations as vectors

LAYOUT = ObservationLayout({"camera": (2, 2), "speed": ()})


@given(st.integers(1, 5), st.booleans())
def test_flattening_and_back_is_the_identity(batch: int, tensors: bool) -> None:
    rng = np.random.default_rng(batch)
    obs: dict[str, Any] = {
        "camera": rng.normal(size=(batch, 2, 2)).astype(np.float32),
        "speed": rng.normal(size=batch).astype(np.float32),
        "left out": np.zeros(batch),
    }
    if tensors:
        obs = {key: torch.from_numpy(value) for key, value in obs.items()}
    flat = LAYOUT.flatten(obs)
    assert flat.shape == (batch, LAYOUT.obs_dim) == (batch, 5)
    # C order, part after part.
    np.testing.assert_array_equal(
        np.asarray(flat[0]), [*np.asarray(obs["camera"][0]).ravel(), float(obs["speed"][0])]
    )
    back = LAYOUT.unflatten(flat)
    assert list(back) == ["camera", "speed"]
    for key, value in back.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(obs[key]))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (np.zeros((1, 5)), "wrong structure: got ndarray"),
        ({"camera": np.zeros((1, 2, 2))}, "`obs\\['speed'\\]` is missing"),
        ({"camera": np.zeros((1, 4)), "speed": np.zeros(1)}, "one row of shape \\(2, 2\\)"),
        ({"camera": np.zeros((2, 2, 2)), "speed": np.zeros(1)}, "disagree on the batch size"),
    ],
)
def test_observations_that_do_not_fit_the_layout(obs: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        LAYOUT.flatten(obs)


def test_layouts_that_cannot_be() -> None:
    for shapes in ({}, {"nothing": (0,)}, (0,)):
        with pytest.raises(UnsupportedSpaceError, match="no elements"):
            ObservationLayout(shapes)
    with pytest.raises(ShapeError, match=r"expected \(B, 5\)"):
        LAYOUT.unflatten(np.zeros((3, 4)))


def test_layouts_compare_by_value() -> None:
    other = ObservationLayout({"camera": (2, 2), "speed": ()})
    assert other == LAYOUT
    assert len({other, LAYOUT, ObservationLayout((5,))}) == 2
    assert repr(ObservationLayout((5,))) == "ObservationLayout((5,))"
    # The order is part of it: the same numbers would stand in other places.
    assert ObservationLayout({"speed": (), "camera": (2, 2)}) != LAYOUT


def test_bounds_are_close_by_their_range() -> None:
    tiny, other = ActionScaler([-1e-9], [1e-9]), ActionScaler([-5e-9], [5e-9])
    assert tiny.is_close(ActionScaler([np.float32(-1e-9)], [np.float32(1e-9)]))
    assert not tiny.is_close(other)
    assert not ActionScaler([1e6], [1e6 + 1]).is_close(ActionScaler([1e6 + 0.5], [1e6 + 1]))
    assert not tiny.is_close(ActionScaler([-1e-9] * 2, [1e-9] * 2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_actions_have_bounds_that_are_not(dtype: torch.dtype) -> None:
    scaler = ActionScaler([0.5], [2.9])
    one = torch.ones(1, dtype=dtype)
    torch.testing.assert_close(scaler.to_unit(one), scaler.to_unit(torch.ones(1)))
    torch.testing.assert_close(scaler.to_box(one), torch.tensor([2.9]))
