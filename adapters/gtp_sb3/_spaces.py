"""Spaces of gymnasium as SB3 shows them to a policy: their layout, and an encoder."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    get_obs_shape,
    is_image_space,
    is_image_space_channels_first,
    preprocess_obs,
)
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
)
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage
from torch import Tensor, nn

from gtp_datasets import spaces as any_host
from gtp_datasets.spaces import is_whole
from gtp_policy import ActionScaler, ObservationLayout
from gtp_policy.errors import UnsupportedSpaceError


class HostSpaceError(UnsupportedSpaceError, AssertionError):
    """An `UnsupportedSpaceError` for those who expect what SB3 raises: an AssertionError."""


def action_scaler_of(space: spaces.Space[Any], *, advice: str = "") -> ActionScaler:
    """Returns the bounds of an action space.

    Raises:
        HostSpaceError: If it is no bounded Box.
    """
    try:
        return any_host.action_scaler_of(space, advice=advice)
    except UnsupportedSpaceError as error:
        raise HostSpaceError(str(error)) from None


def _shape_of(part: spaces.Space[Any]) -> tuple[int, ...]:
    """Returns the shape in which SB3 passes observations of a space on, discrete ones included."""
    return cast("tuple[int, ...]", get_obs_shape(part))


def layout_of(space: spaces.Space[Any]) -> ObservationLayout:
    """Returns how an observation becomes one vector; of a Dict, in the order of the core."""
    return any_host.layout_of(space, shape_of=_shape_of)


def has_parts(space: spaces.Space[Any], layout: ObservationLayout) -> bool:
    """Returns whether a layout can flatten the observations of a space."""
    return any_host.has_parts(space, layout, shape_of=_shape_of)


def check_env(env: VecEnv, layout: ObservationLayout, action_space: spaces.Space[Any]) -> None:
    """Raises unless an environment has observations of the same shapes and the same actions.

    Parts that the layout leaves out do not matter.

    Raises:
        ValueError: If it has others.
    """
    theirs = layout_of(env.observation_space)
    if not (has_parts(env.observation_space, layout) or any_host.same_vectors(theirs, layout)):
        raise ValueError(
            f"The observations of the environment do not fit: got {theirs}, expected {layout}."
        )
    got, ours = env.action_space, action_space
    # A vector of floats may be all that is known, as of a dataset.
    known = is_whole(ours) or len(ours.shape or ()) != 1
    if not action_scaler_of(got).is_close(action_scaler_of(ours)) or (
        known and (got.shape, is_whole(got)) != (ours.shape, is_whole(ours))
    ):
        raise ValueError(f"The actions of the environment do not fit: got {got}, expected {ours}.")


def check_for_extractor(space: spaces.Space[Any], layout: ObservationLayout) -> None:
    """Raises unless a features extractor can take a space: SB3 encodes it, a layout has all parts.

    Raises:
        UnsupportedSpaceError: If it leaves one out, or SB3 cannot encode one.
    """
    for key, part in parts_of(space).items():
        if np.any(getattr(part, "start", 0)):
            raise UnsupportedSpaceError(
                f"SB3 counts categories from 0: got {part}{f' at {key!r}' * bool(key)}, expected "
                "start=0. Subtract it: gymnasium.wrappers.TransformObservation(env, lambda obs: "
                "..., space)."
            )
    parts = [key for key in parts_of(space) if key]
    if missing := [key for key in parts if key not in layout.keys]:
        raise UnsupportedSpaceError(
            f"The dataset leaves out parts of the observation: got {list(layout.keys)} without "
            f"{missing}, expected {parts}, as a features extractor sees them all. Load the dataset "
            "with these, or leave them out of the environment too: "
            f"gymnasium.wrappers.FilterObservation(env, {list(layout.keys)})."
        )


def space_of(layout: ObservationLayout, images: Iterable[str] = ()) -> spaces.Space[Any]:
    """Returns a space of the shapes of a layout, where no environment says more.

    Images, by their keys, are bytes; all else is unbounded.
    """
    boxes: dict[str, spaces.Space[Any]] = {
        key: spaces.Box(0, 255, shape, np.uint8)
        if key in images
        else spaces.Box(-np.inf, np.inf, shape, np.float32)
        for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True)
    }
    return spaces.Dict(boxes) if layout.keys else boxes[""]


def parts_of(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """Returns the spaces of a Dict by key, or the space itself under an empty key."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def has_images(space: spaces.Space[Any]) -> bool:
    """Returns whether a part of the observation is an image: three axes, uint8, 0 to 255."""
    return any(is_image_space(part) for part in parts_of(space).values())


def channels_first(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Returns the space that SB3 shows to a policy: images with their channels first."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({k: channels_first(v) for k, v in space.spaces.items()})
    if isinstance(space, spaces.Box) and is_image_space(space):
        if not is_image_space_channels_first(space):
            return VecTransposeImage.transpose_space(space)
    return space


def is_vector(
    space: spaces.Space[Any], extractor: type[BaseFeaturesExtractor], normalize_images: bool
) -> bool:
    """Returns whether SB3's preprocessing and extractor would only flatten and join."""
    if extractor not in (FlattenExtractor, CombinedExtractor):
        return False
    # CombinedExtractor takes what looks like an image for one even where nothing is divided.
    lenient = extractor is CombinedExtractor and not normalize_images
    for part in parts_of(space).values():
        if isinstance(part, spaces.MultiBinary):
            continue
        if not isinstance(part, spaces.Box):
            return False
        if is_image_space(part, normalized_image=lenient) and (normalize_images or lenient):
            return False
    return True


class ObservationEncoder(nn.Module):
    """SB3's preprocessing and features extractor behind the core's flat observations.

    Args:
        space: The observation space.
        layout: How its observations are flattened.
        extractor: The features extractor.
        normalize_images: Whether to divide images by 255.
        history: m, observations in one, of which the extractor sees each by itself.
    """

    def __init__(
        self,
        space: spaces.Space[Any],
        layout: ObservationLayout,
        extractor: BaseFeaturesExtractor,
        normalize_images: bool,
        history: int = 1,
    ) -> None:
        super().__init__()
        self.space, self.layout = space, layout
        self.extractor, self.normalize_images = extractor, normalize_images
        self.features_dim = int(extractor.features_dim) * history

    def forward(self, obs: Tensor) -> Tensor:
        """Returns features (B, m F) of flat observations (B, m O)."""
        parts = self.layout.unflatten(obs.reshape(-1, self.layout.obs_dim))
        features: Tensor = self.extractor(preprocess_obs(parts, self.space, self.normalize_images))
        return features.reshape(obs.shape[0], self.features_dim)


def with_axes(obs: Any, layout: ObservationLayout) -> Any:  # noqa: ANN401 - one tensor or a dict
    """Gives discrete parts the axis that a replay buffer gives them: (B,) becomes (B, 1)."""
    if isinstance(obs, Mapping):
        shapes = dict(zip(layout.keys, layout.shapes, strict=True))
        return {k: _with_axis(v, shapes.get(k)) for k, v in obs.items()}
    return _with_axis(obs, layout.shapes[0])


def _with_axis(part: Any, shape: tuple[int, ...] | None) -> Any:  # noqa: ANN401 - a tensor
    return part[:, None] if part.ndim == 1 and shape == (1,) else part
