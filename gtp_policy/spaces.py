"""What stands between the world's units and the core's: action ranges, observations as vectors.

No gymnasium here: a Box is two arrays, ``low`` and ``high``.
"""

import itertools
import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gtp_policy.errors import (
    DataError,
    NonFiniteError,
    ShapeError,
    StateMismatchError,
    UnsupportedSpaceError,
)

_Array = TypeVar("_Array", npt.NDArray[np.floating], Tensor)

_WIDEST = float(np.finfo(np.float32).max)
_ROUNDING = float(np.finfo(np.float32).eps)


def _check_array(name: str, value: object, *kinds: type) -> None:
    """Raises unless a value is an array of numbers: lists have no shape of their own."""
    if not isinstance(value, kinds or (np.ndarray, Tensor)):
        raise ShapeError(
            f"`{name}` is no {'tensor' if kinds else 'array'}: got "
            f"{type(value).__name__}, expected numpy's or torch's. Convert it first."
        )
    complex_ = isinstance(value, Tensor) and value.is_complex()
    if complex_ or (isinstance(value, np.ndarray) and value.dtype.kind not in "fiub"):
        dtype = cast("Tensor", value).dtype
        raise DataError(
            f"`{name}` has the wrong dtype: got {dtype}, expected real numbers. Convert it first."
        )
    _check_has_values(name, value)


def _check_has_values(name: str, value: object) -> None:
    if first_masked(value) is not None:
        raise DataError(
            f"`{name}` is masked: got elements without a value, expected numbers only. What lies "
            "under a mask is no observation: fill it with what the policy was trained on, or do "
            "not act."
        )


def real_array(name: str, value: object) -> npt.NDArray[Any]:
    """Returns what an environment shows as an array of real numbers that torch takes, too.

    Numbers in another order of bytes, in objects or in steps through memory are copied; a type is
    kept that torch has.

    Args:
        name: What the message calls the value.
        value: An array, or what makes one.

    Returns:
        The array, without a mask.

    Raises:
        DataError: If an element is masked, or the numbers are complex or none, such as text.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.spaces import real_array
        >>> real_array("obs", np.ma.masked_equal([0.5, -999.0], -999.0))
        Traceback (most recent call last):
        ...
        gtp_policy.errors.DataError: `obs` is masked: got elements without a value, expected \
numbers only. What lies under a mask is no observation: fill it with what the policy was trained \
on, or do not act.
    """
    _check_has_values(name, value)
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":
            if any(isinstance(element, str | bytes) for element in array.flat):
                raise TypeError("text")
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"`{name}` is no array of numbers: got {error}, expected real numbers in rows of one "
            "length."
        ) from error
    _check_array(name, array)
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    dtype = np.dtype(np.float64) if wide else array.dtype.newbyteorder("=")
    return np.asarray(array, dtype, order="C")


def first_masked(values: object) -> int | None:
    """Returns the row of the first masked value, however deep in lists it is.

    NumPy makes a plain array of what holds masked ones, with the hidden numbers in it.

    Args:
        values: Anything; lists, tuples and arrays of objects are looked into.

    Returns:
        The row, 0 of a value without rows; None where nothing is masked.

    Example:
        >>> import numpy as np
        >>> from gtp_policy.spaces import first_masked
        >>> rows = np.ma.masked_equal([[0.5], [-999.0]], -999.0)
        >>> first_masked(rows), first_masked(list(rows)), first_masked([0.5, -999.0])
        (1, 1, None)
    """
    return _first_masked(values, 64)  # NumPy's arrays have no more dimensions


def check_not_masked(low: object, high: object) -> None:
    """Raises if a bound is masked.

    Args:
        low: Lower bounds.
        high: Upper bounds.

    Raises:
        UnsupportedSpaceError: If one is.

    Example:
        >>> from gtp_policy.spaces import check_not_masked
        >>> check_not_masked([-1.0], [1.0])
    """
    for name, bound in (("low", low), ("high", high)):
        if (row := first_masked(bound)) is not None:
            raise UnsupportedSpaceError(
                f"Action bounds are masked: got `{name}` without a value for dimension {row}, "
                "expected numbers. Fill them: an infinite one is one that is not known."
            )


def _first_masked(values: object, depth: int) -> int | None:
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        if mask.dtype == np.bool_ and mask.any():
            return int(np.argwhere(mask)[0, 0]) if mask.ndim else 0
    if isinstance(values, np.ndarray):
        if not values.dtype.hasobject or not values.ndim:
            return None
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes | range) or not depth:
        return None
    for row, value in enumerate(values):
        deep = not isinstance(value, float | int)  # most are: a call for each would take long
        if deep and _first_masked(value, depth - 1) is not None:
            return row
    return None


class ActionScaler:
    r"""Maps actions between a Box and [-1, 1], each dimension by its own range.

    .. math:: a_{unit} = 2 \frac{a - low}{high - low} - 1

    Args:
        low: Lower bounds, shape (A,), finite.
        high: Upper bounds, shape (A,), finite, above ``low``.

    Raises:
        UnsupportedSpaceError: If a dimension is unbounded or has an empty range, or the bounds
            are not two vectors of one length.

    Example:
        >>> import numpy as np
        >>> from gtp_policy import ActionScaler
        >>> scaler = ActionScaler([-2.0, 0.0], [2.0, 10.0])
        >>> scaler.to_unit(np.array([[1.0, 5.0]]))
        array([[0.5, 0. ]])
        >>> scaler.to_box(np.array([[0.5, 0.0]]))
        array([[1., 5.]])
    """

    def __init__(self, low: npt.ArrayLike, high: npt.ArrayLike) -> None:
        check_not_masked(low, high)
        try:
            self.low = np.asarray(low, dtype=np.float64).copy()  # writable, as torch requires
            self.high = np.asarray(high, dtype=np.float64).copy()
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch's, too
            raise UnsupportedSpaceError(
                f"Action bounds are no numbers: got low={low!r} and high={high!r}, expected two "
                "vectors of numbers."
            ) from error
        if self.low.ndim != 1 or self.low.shape != self.high.shape or self.low.size == 0:
            raise UnsupportedSpaceError(
                f"Action bounds have the wrong shape: got low {self.low.shape} and high "
                f"{self.high.shape}, expected two vectors of one length. Flatten the Box first."
            )
        for i, (lo, hi) in enumerate(zip(self.low, self.high, strict=True)):
            # A range of float32's largest numbers is some environments' word for "unbounded".
            if not (np.isfinite(lo) and np.isfinite(hi)) or float(hi) - float(lo) > _WIDEST:
                raise UnsupportedSpaceError(
                    f"Action dimension {i} is unbounded: got low={lo}, high={hi}, expected finite "
                    "bounds. Give the range of the data instead."
                )
            if not np.float32(lo) < np.float32(hi):  # as hosts keep them
                raise UnsupportedSpaceError(
                    f"Action dimension {i} has no range: got low={lo}, high={hi}, expected low < "
                    "high. Remove the dimension or correct its bounds."
                )

    @classmethod
    def of_data(
        cls,
        action: npt.NDArray[Any],
        low: npt.ArrayLike = -np.inf,
        high: npt.ArrayLike = np.inf,
    ) -> Self:
        """Takes the bounds that are not known from actions, and says so in a warning.

        A policy never leaves its bounds: what the data does not show it cannot do. A dimension that
        never changes gets a range around its value.

        Args:
            action: Actions, shape (N, A), N >= 1; numbers that are not finite count for nothing.
            low: Lower bounds, a scalar or of shape (A,); infinite where they are not known.
            high: Upper bounds, likewise.

        Returns:
            A scaler whose bounds are all finite.

        Raises:
            UnsupportedSpaceError: If a known bound does not fit.

        Example:
            >>> import warnings
            >>> import numpy as np
            >>> from gtp_policy import ActionScaler
            >>> with warnings.catch_warnings(record=True) as caught:
            ...     warnings.simplefilter("always")
            ...     ActionScaler.of_data(np.array([[0.5, -3.0], [0.0, 4.0]]), low=[-1.0, -np.inf],
            ...                          high=[1.0, np.inf])
            ActionScaler(low=[-1.0, -3.0], high=[1.0, 4.0])
            >>> print(caught[0].message)
            Action dimensions [1] have no bounds: their limits are those of the data, [-3.0] to
            [4.0]. Pass low= and high= where actions beyond them should be possible.
        """
        check_not_masked(low, high)
        shape = action.shape[1:]
        bounds = [np.asarray(given, np.float64) for given in (low, high)]
        if len(shape) != 1 or any(b.shape not in ((), shape) for b in bounds):
            return cls(low, high)  # which says what does not fit
        lows, highs = (np.broadcast_to(b, shape).copy() for b in bounds)
        # A bound near float32's largest number is some environments' word for "unbounded".
        open_low, open_high = (~(np.abs(b) < _WIDEST / 4) for b in (lows, highs))
        finite = np.isfinite(action)
        least = np.where(finite, action, np.inf).min(0)
        most = np.where(finite, action, -np.inf).max(0)
        lows[open_low], highs[open_high] = least[open_low], most[open_high]
        constant = ~(lows.astype(np.float32) < highs.astype(np.float32))
        around = np.maximum(1.0, np.abs(lows) * 1e-3)
        lows[constant & open_low] -= around[constant & open_low]
        highs[constant & open_high] += around[constant & open_high]
        unknown = np.flatnonzero(open_low | open_high)
        if len(unknown):
            warnings.warn(
                f"Action dimensions {unknown.tolist()} have no bounds: their limits are those of "
                f"the data, {lows[unknown].tolist()} to {highs[unknown].tolist()}. Pass low= and "
                "high= where actions beyond them should be possible.",
                stacklevel=2,
            )
        return cls(lows, highs)

    @property
    def action_dim(self) -> int:
        """A, number of action dimensions."""
        return int(self.low.size)

    def to_unit(self, action: _Array) -> _Array:
        """Maps actions from the Box to [-1, 1]; nothing is clipped.

        Args:
            action: Numpy array or tensor, shape (..., A), in the units of the Box.

        Returns:
            The same kind of array, shape (..., A); in [-1, 1] where the action lies in the Box.

        Raises:
            ShapeError: If the last dimension is not A.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import ActionScaler
            >>> ActionScaler([0.0], [4.0]).to_unit(np.array([3.0]))
            array([0.5])
        """
        # Not 2 (a - low) / span - 1: a Box that is [-1, 1] already must not round small actions.
        low, high, span = self._bounds_like(action)
        unit: _Array = action * (2 / span) - (low + high) / span
        return unit

    def to_box(self, action: _Array) -> _Array:
        """Maps actions from [-1, 1] to the Box; an input in [-1, 1] never leaves it.

        Args:
            action: Numpy array or tensor, shape (..., A).

        Returns:
            The same kind of array, shape (..., A), clipped to the Box against rounding.

        Raises:
            ShapeError: If the last dimension is not A.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import ActionScaler
            >>> ActionScaler([0.0], [4.0]).to_box(np.array([0.5]))
            array([3.])
        """
        low, high, span = self._bounds_like(action)
        return (action * (span / 2) + (low + high) / 2).clip(low, high)

    def is_close(self, other: "ActionScaler") -> bool:
        """Returns whether two scalers have the same bounds, up to the rounding of float32.

        Files and spaces hold them in different types; ``==`` compares every bit.

        Args:
            other: The scaler to compare with.

        Returns:
            The answer.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import ActionScaler
            >>> ActionScaler([0.0], [0.1]).is_close(ActionScaler([0.0], [np.float32(0.1)]))
            True
        """
        if not isinstance(other, ActionScaler):
            raise UnsupportedSpaceError(
                f"`other` is no scaler: got {type(other).__name__}, expected an ActionScaler."
            )
        if self.action_dim != other.action_dim:
            return False
        # By the range: bounds may be tiny, or far from 0.
        span = np.minimum(self.high - self.low, other.high - other.low)
        return all(
            bool(np.all(np.abs(a - b) <= 1e-5 * span + _ROUNDING * np.maximum(abs(a), abs(b))))
            for a, b in ((self.low, other.low), (self.high, other.high))
        )

    def _bounds_like(self, action: _Array) -> tuple[_Array, _Array, _Array]:
        _check_array("action", action)
        if not action.ndim or action.shape[-1] != self.action_dim:
            raise ShapeError(
                f"`action` has the wrong last dimension: got shape {tuple(action.shape)}, expected "
                f"(..., {self.action_dim})."
            )
        low, high, span = self.low, self.high, self.high - self.low
        if isinstance(action, Tensor):
            # Bounds of 0.5 are none of integers'.
            whole = not action.is_floating_point()
            dtype = torch.get_default_dtype() if whole else action.dtype
            low_, high_, span_ = (
                torch.as_tensor(v, device="cpu").to(action.device, dtype) for v in (low, high, span)
            )
            return low_, high_, span_
        if not np.issubdtype(action.dtype, np.floating):
            return low, high, span
        return low.astype(action.dtype), high.astype(action.dtype), span.astype(action.dtype)

    def __eq__(self, other: object) -> bool:
        """Returns whether two scalers map alike."""
        return (
            isinstance(other, ActionScaler)
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def __repr__(self) -> str:
        """Shows the bounds."""
        return f"ActionScaler(low={self.low.tolist()}, high={self.high.tolist()})"


class ObservationLayout:
    """The order and the shapes in which an observation becomes one vector, and back.

    A plain array is flattened in C order. Of a mapping, the parts are flattened and joined in the
    order of ``shapes``; parts it does not name are left out.

    Args:
        shapes: Shape of one observation, without the batch dimension, or such shapes by key.

    Attributes:
        keys: Keys in their order; empty for a plain array.
        shapes: The shapes in that order; one for a plain array.
        obs_dim: O, length of the vector.
        GOAL_KEYS: Order of the parts of a goal observation.

    Raises:
        UnsupportedSpaceError: If there is no part, or a part without elements.

    Example:
        >>> import numpy as np
        >>> from gtp_policy import ObservationLayout
        >>> layout = ObservationLayout({"camera": (2, 2), "speed": (1,)})
        >>> flat = layout.flatten({"speed": np.ones((3, 1)), "camera": np.zeros((3, 2, 2))})
        >>> flat.shape, layout.unflatten(flat)["camera"].shape
        ((3, 5), (3, 2, 2))
    """

    # Dict spaces and HDF5 iterate alphabetically, which would put the goals first.
    GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")

    def __init__(self, shapes: tuple[int, ...] | Mapping[str, tuple[int, ...]]) -> None:
        named = isinstance(shapes, Mapping)
        parts = dict(shapes) if isinstance(shapes, Mapping) else {"": shapes}
        self.keys = tuple(parts) if named else ()
        try:
            self.shapes: tuple[tuple[int, ...], ...] = tuple(
                tuple(operator.index(n) for n in shape) for shape in parts.values()
            )
        except TypeError as error:
            raise UnsupportedSpaceError(
                f"The observation has no shape: got {shapes!r}, expected a tuple of integers, or "
                "such tuples by key."
            ) from error
        self._widths = [math.prod(shape) for shape in self.shapes]
        self.obs_dim = sum(self._widths)
        if not self._widths or min(self._widths) < 1:
            raise UnsupportedSpaceError(
                f"The observation has no elements: got shapes {shapes}, expected at least one part "
                "and at least one element in each. Leave the empty part out."
            )

    @classmethod
    def of_dict(cls, shapes: Mapping[str, tuple[int, ...]]) -> Self:
        """Orders the parts of a Dict observation by one fixed rule.

        A goal observation in the order observation, achieved_goal, desired_goal; other keys in
        alphabetical order, as Dict spaces iterate.

        Args:
            shapes: Shapes by key, in any order.

        Returns:
            The layout.

        Example:
            >>> from gtp_policy import ObservationLayout
            >>> goal = {"achieved_goal": (2,), "desired_goal": (2,), "observation": (4,)}
            >>> ObservationLayout.of_dict(goal).keys
            ('observation', 'achieved_goal', 'desired_goal')
        """
        keys = cls.GOAL_KEYS if set(shapes) == set(cls.GOAL_KEYS) else tuple(sorted(shapes))
        return cls({key: shapes[key] for key in keys})

    def flatten(self, obs: _Array | Mapping[str, _Array]) -> _Array:
        """Makes one vector of each observation.

        Args:
            obs: Numpy arrays or tensors with a leading batch dimension, of any number type: one
                array, or one per key.

        Returns:
            The same kind of array in float32, shape (B, O).

        Raises:
            ShapeError: If a part is missing or has another shape.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import ObservationLayout
            >>> ObservationLayout((2, 2)).flatten(np.eye(2)[None])
            array([[1., 0., 0., 1.]], dtype=float32)
        """
        if isinstance(obs, Mapping) != bool(self.keys):
            raise ShapeError(
                f"The observation has the wrong structure: got {type(obs).__name__}, expected "
                f"{f'a mapping with {list(self.keys)}' if self.keys else 'one array'}."
            )
        parts = cast("Mapping[str, _Array]", obs if self.keys else {"": obs})
        rows: list[_Array] = []
        for key, shape in zip(self.keys or ("",), self.shapes, strict=True):
            name = f"obs[{key!r}]" if self.keys else "obs"
            if key not in parts:
                raise ShapeError(
                    f"`{name}` is missing: got {sorted(parts)}, expected {list(self.keys)}."
                )
            part = parts[key]
            _check_array(name, part)
            if not part.ndim or tuple(part.shape[1:]) != shape:
                raise ShapeError(
                    f"`{name}` has the wrong shape: got {tuple(part.shape)}, expected one row of "
                    f"shape {shape} per observation."
                )
            # Not len(): to a tracer that is one number for ever.
            flat = part.reshape(part.shape[0], math.prod(shape))
            rows.append(
                flat.float() if isinstance(flat, Tensor) else flat.astype(np.float32, copy=False)
            )
        if any(row.shape[0] != rows[0].shape[0] for row in rows):
            raise ShapeError(
                "The parts of the observation disagree on the batch size: got "
                f"{dict(zip(self.keys, map(len, rows), strict=True))}, expected one number."
            )
        if len(rows) == 1:
            return rows[0]
        return torch.cat(rows, 1) if isinstance(rows[0], Tensor) else np.concatenate(rows, 1)

    def unflatten(self, flat: _Array) -> _Array | dict[str, _Array]:
        """Takes vectors apart again, without a copy where the memory allows.

        Args:
            flat: Numpy array or tensor, shape (B, O).

        Returns:
            One array (B, ...), or a dict of such arrays by key.

        Raises:
            ShapeError: If the shape is not (B, O).

        Example:
            >>> import numpy as np
            >>> from gtp_policy import ObservationLayout
            >>> ObservationLayout((2, 2)).unflatten(np.array([[1.0, 0.0, 0.0, 1.0]])).shape
            (1, 2, 2)
        """
        _check_array("flat", flat)
        if flat.ndim != 2 or flat.shape[1] != self.obs_dim:
            raise ShapeError(
                f"`flat` has the wrong shape: got {tuple(flat.shape)}, expected (B, "
                f"{self.obs_dim})."
            )
        parts: list[_Array] = []
        start = 0
        for shape, width in zip(self.shapes, self._widths, strict=True):
            parts.append(flat[:, start : start + width].reshape(flat.shape[0], *shape))
            start += width
        return dict(zip(self.keys, parts, strict=True)) if self.keys else parts[0]

    def __eq__(self, other: object) -> bool:
        """Returns whether two layouts flatten alike."""
        return (
            isinstance(other, ObservationLayout)
            and self.keys == other.keys
            and self.shapes == other.shapes
        )

    def __hash__(self) -> int:
        """Hashes what equality compares."""
        return hash((self.keys, self.shapes))

    def __repr__(self) -> str:
        """Shows the shapes."""
        inside = dict(zip(self.keys, self.shapes, strict=True)) if self.keys else self.shapes[0]
        return f"ObservationLayout({inside})"


class ObservationNormalizer(nn.Module):
    r"""Centres and scales observations by statistics that live in the module's state.

    .. math:: o_{norm} = \frac{o - \mu}{\sigma}

    The statistics are buffers: saved with the policy, moved with it, lost never. A new normaliser
    changes nothing (mean 0, std 1) until `set_statistics_` is called. A dimension that is constant
    in the data (std below 1e-6) is only centred, so that it cannot blow up at deployment.

    Args:
        obs_dim: O, number of observation dimensions.

    Example:
        >>> import torch
        >>> from gtp_policy.spaces import ObservationNormalizer
        >>> normalizer = ObservationNormalizer(2)
        >>> normalizer.set_statistics_(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0]))(
        ...     torch.tensor([[3.0, 4.0]])
        ... )
        tensor([[1., 4.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_dim, dtype=torch.float32, device="cpu"))
        self.register_buffer("scale", torch.ones(obs_dim, dtype=torch.float32, device="cpu"))

    def check_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Raises unless `set_statistics_` can take them; changes nothing.

        Args:
            mean: Shape (O,), finite in the module's dtype.
            std: Shape (O,), finite likewise, >= 0.

        Raises:
            ShapeError: If a shape is not (O,).
            NonFiniteError: If a value is not finite in the module's dtype or a std is negative.

        Example:
            >>> import torch
            >>> from gtp_policy.spaces import ObservationNormalizer
            >>> ObservationNormalizer(2).check_statistics(torch.zeros(2), torch.ones(2))
        """
        for name, value in (("mean", mean), ("std", std)):
            _check_array(name, value, Tensor)
            if value.shape != self.mean.shape:
                raise ShapeError(
                    f"`{name}` has the wrong shape: got {tuple(value.shape)}, expected "
                    f"{tuple(self.mean.shape)}."
                )
        # In the dtype that is kept: 1e39 is infinite in float32.
        mean, std = mean.to(self.mean), std.to(self.mean)
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise NonFiniteError(
                "Observation statistics are unusable: got a value that is not finite or a negative "
                f"std, expected finite numbers in {self.mean.dtype}. Check the observations of the "
                "dataset."
            )

    def set_statistics_(self, mean: Tensor, std: Tensor) -> Self:
        """Takes over the mean and standard deviation of the data, in place.

        Args:
            mean: Shape (O,), finite.
            std: Shape (O,), finite, >= 0.

        Returns:
            The module itself.

        Raises:
            ShapeError: If a shape is not (O,).
            NonFiniteError: If a value is not finite or a std is negative.

        Example:
            >>> import torch
            >>> from gtp_policy.spaces import ObservationNormalizer
            >>> ObservationNormalizer(1).set_statistics_(torch.ones(1), torch.zeros(1)).scale
            tensor([1.])
        """
        self.check_statistics(mean, std)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(std < 1e-6, torch.ones_like(std), std))
        return self

    def forward(self, obs: Tensor) -> Tensor:
        """Returns normalised observations.

        Args:
            obs: Shape (..., O).

        Returns:
            Shape (..., O).
        """
        return (obs - self.mean) / self.scale


def check_numbers(module: nn.Module) -> None:
    """Raises unless parameters and scales are numbers that training can leave behind.

    Args:
        module: A learner, or a module that holds one.

    Raises:
        StateMismatchError: If a parameter or an observation's mean or scale is NaN or infinite, or
            a scale is not positive.

    Example:
        >>> import torch
        >>> from gtp_policy.spaces import check_numbers
        >>> broken = torch.nn.Linear(1, 1)
        >>> _ = broken.weight.detach().fill_(torch.nan)
        >>> check_numbers(broken)
        Traceback (most recent call last):
        ...
        gtp_policy.errors.StateMismatchError: The state holds what no training leaves behind: got \
NaN or infinity in `weight`, expected numbers. Load an earlier one.
    """
    normalizers = [m for m in module.modules() if isinstance(m, ObservationNormalizer)]
    scales = {id(m.scale) for m in normalizers}
    tensors = itertools.chain(module.named_parameters(), module.named_buffers())
    ours = {id(tensor) for m in normalizers for tensor in (m.mean, m.scale)}
    for name, tensor in tensors:
        plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
        # Buffers of other modules hold what they like.
        if not plain or not (isinstance(tensor, nn.Parameter) or id(tensor) in ours):
            continue
        if not tensor.isfinite().all():
            wrong = "NaN or infinity"
        elif id(tensor) in scales and not (tensor > 0).all():
            wrong = "a scale that is not positive"
        else:
            continue
        raise StateMismatchError(
            f"The state holds what no training leaves behind: got {wrong} in `{name}`, "
            "expected numbers. Load an earlier one."
        )
