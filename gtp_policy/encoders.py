"""Encoders that a config can name: from observations with images to features.

They stand in checkpoints by their choices, so that the core alone builds them again. Encoders of
your own are passed as modules (`FlowMapActor`'s ``encoder``), to build and to load.
"""

import itertools
import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from gtp_policy._config import Bool, Config, Int, Width
from gtp_policy.errors import DataError
from gtp_policy.frames import channels_are_last
from gtp_policy.networks import linear, uniform_
from gtp_policy.spaces import ObservationLayout

# Convolutions and linear layers of an encoder, all images together: to build more of them takes
# seconds, of however few numbers they are.
_MOST_LAYERS = 300


class ObservationPart(Config):
    """One part of an observation, as an encoder finds it among the numbers.

    Example:
        >>> from gtp_policy.encoders import ObservationPart
        >>> ObservationPart(shape=(64, 64, 3), image=True).size
        12288
    """

    shape: tuple[Width, ...] = Field(description="Shape of the part.")
    image: Bool = Field(description="Whether it is an image, of bytes from 0 to 255.")

    @property
    def size(self) -> int:
        """Numbers of the part."""
        return math.prod(self.shape)


class ImpalaEncoderConfig(Config):
    r"""The small residual network of IMPALA for images, with vectors as they are.

    Bytes are scaled to :math:`x / 255 - 0.5` on the device. Each image passes a stage per entry of
    ``channels`` (a convolution, pooling that halves the picture, ``blocks`` residual blocks) and a
    linear layer to ``features`` numbers. Other parts of the observation are joined to them. Of a
    history, the images of all steps are channels of one. At most 300 layers, all images together.

    Actor, critic and value network have an encoder each, with gradients from their own losses
    alone, and so have their targets. Updates go through autograd: `GTPLearner.explain` says so.

    References:
        | IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures
        | (Espeholt et al., 2018), figure 3, https://arxiv.org/abs/1802.01561

    Example:
        >>> from gtp_policy import GTPConfig
        >>> from gtp_policy.encoders import ImpalaEncoderConfig
        >>> GTPConfig(encoder=ImpalaEncoderConfig(features=64)).encoder.channels
        (16, 32, 32)
    """

    kind: Literal["impala"] = Field(default="impala", description="Name of the network.")
    channels: tuple[Width, ...] = Field(
        default=(16, 32, 32), min_length=1, max_length=8, description="Channels of each stage."
    )
    blocks: Int = Field(default=1, ge=1, le=16, description="Residual blocks of a stage.")
    features: Width = Field(default=256, description="Numbers that an image becomes.")
    parts: tuple[ObservationPart, ...] | None = Field(
        default=None,
        description="Parts of one observation in their order. Taken from the dataset by "
        "GTPLearner.from_dataset.",
    )

    @model_validator(mode="after")
    def _is_built_soon(self) -> Self:
        images = sum(part.image for part in self.parts or ()) or 1
        layers = images * (len(self.channels) * (1 + 2 * self.blocks) + 1)
        if layers > _MOST_LAYERS:
            raise ValueError(
                f"an encoder has at most {_MOST_LAYERS} layers, all images together: got {layers} "
                f"for {images} images, {len(self.channels)} stages and blocks={self.blocks}. Take "
                "fewer stages or blocks, or put images of one size together as channels"
            )
        return self

    def fit_to(self, layout: ObservationLayout, images: tuple[str, ...]) -> Self:
        """Returns the config for observations of a layout, where it leaves them open.

        Args:
            layout: Parts of an observation.
            images: Keys of those that are images; "" of a plain array.

        Returns:
            The config itself if it says so already.

        Raises:
            DataError: If there is no image, or the config is for other observations.
            pydantic.ValidationError: If so many images pass more than 300 layers.

        Example:
            >>> from gtp_policy import ObservationLayout
            >>> from gtp_policy.encoders import ImpalaEncoderConfig
            >>> config = ImpalaEncoderConfig().fit_to(ObservationLayout((64, 64, 3)), ("",))
            >>> config.parts[0].image
            True
        """
        parts = tuple(
            ObservationPart(shape=shape, image=key in images)
            for key, shape in zip(layout.keys or ("",), layout.shapes, strict=True)
        )
        if not any(part.image for part in parts):
            raise DataError(
                f"There is nothing to encode: got observations {layout} without an image, expected "
                "a part of type uint8 with three axes. Leave the config's encoder at None."
            )
        if self.parts not in (None, parts):
            raise DataError(
                f"The encoder is for other observations: got {parts}, expected {self.parts}. Leave "
                "its parts open."
            )
        return self.replace(parts=parts)

    def build(
        self, obs_dim: int, history: int = 1, *, generator: torch.Generator | None = None
    ) -> "ImpalaEncoder":
        """Builds the module.

        Args:
            obs_dim: O, of all m observations together.
            history: m.
            generator: Source of the initial parameters; without one they are not filled, as on the
                meta device.

        Returns:
            The encoder.

        Raises:
            ValueError: If ``parts`` are open, or of another size than the observations.
        """
        self._known_parts(obs_dim, history)
        return ImpalaEncoder(self, history, generator)

    def count(self, obs_dim: int, history: int = 1) -> tuple[int, int]:
        """Counts what `build` would make, without making it.

        Args:
            obs_dim: O, of all m observations together.
            history: m.

        Returns:
            F, width of the features, and the number of parameters.

        Raises:
            ValueError: If ``parts`` are open, or of another size than the observations.

        Example:
            >>> from gtp_policy.encoders import ImpalaEncoderConfig, ObservationPart
            >>> parts = (ObservationPart(shape=(16, 16, 3), image=True),)
            >>> config = ImpalaEncoderConfig(parts=parts, channels=(4, 8), features=10)
            >>> encoder = config.build(16 * 16 * 3)
            >>> config.count(16 * 16 * 3) == (10, sum(p.numel() for p in encoder.parameters()))
            True
        """
        parts, numbers = self._known_parts(obs_dim, history), 0
        for part in parts:
            if part.image:
                widths, pixels = _tower_widths(self, part.shape, history)
                for inputs, outputs in itertools.pairwise(widths):
                    inner = 2 * self.blocks * outputs
                    numbers += 9 * outputs * (inputs + inner) + outputs + inner
                numbers += (widths[-1] * pixels + 1) * self.features
        return _features_dim(self, parts, history), numbers

    def _known_parts(self, obs_dim: int, history: int) -> tuple[ObservationPart, ...]:
        if self.parts is None or sum(part.size for part in self.parts) * history != obs_dim:
            raise ValueError(
                f"The encoder does not know the observations: got parts={self.parts!s:.200} and "
                f"history={history}, expected parts of {obs_dim} numbers. Build the learner with "
                "GTPLearner.from_dataset, or call fit_to."
            )
        return self.parts


class ImpalaEncoder(nn.Module):
    """The module of an `ImpalaEncoderConfig`.

    Args:
        config: The choices, with their parts.
        history: m, observations in one.
        generator: Source of the initial parameters.

    Attributes:
        features_dim: F, width of the output.

    Example:
        >>> import torch
        >>> from gtp_policy.encoders import ImpalaEncoderConfig, ObservationPart
        >>> parts = (ObservationPart(shape=(16, 16, 3), image=True),)
        >>> config = ImpalaEncoderConfig(parts=parts, channels=(4, 8), features=10)
        >>> encoder = config.build(16 * 16 * 3, generator=torch.Generator())
        >>> encoder(torch.zeros(5, 16 * 16 * 3)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self, config: ImpalaEncoderConfig, history: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        parts = config.parts or ()
        self.config, self.history = config, history
        self.towers = nn.ModuleList(
            _Tower(config, part.shape, history, generator) for part in parts if part.image
        )
        self.features_dim = _features_dim(config, parts, history)

    def forward(self, obs: Tensor) -> Tensor:
        """Returns features.

        Args:
            obs: Observations, normalised where they are vectors, shape (B, O).

        Returns:
            Shape (B, F).
        """
        parts = self.config.parts or ()
        pieces = torch.split(
            obs.reshape(obs.shape[0], self.history, -1), [part.size for part in parts], 2
        )
        towers, found = iter(self.towers), []
        for part, piece in zip(parts, pieces, strict=True):
            found.append(next(towers)(piece) if part.image else piece.flatten(1))
        return torch.cat(found, 1)


def _features_dim(
    config: ImpalaEncoderConfig, parts: tuple[ObservationPart, ...], history: int
) -> int:
    return sum(config.features if part.image else history * part.size for part in parts)


def _tower_widths(
    config: ImpalaEncoderConfig, shape: tuple[int, ...], history: int
) -> tuple[list[int], int]:
    """Returns the channels from stage to stage, and the pixels of a channel after the last."""
    last = channels_are_last(shape)
    height, width = shape[:2] if last else shape[1:]
    for _ in config.channels:
        height, width = (height + 1) // 2, (width + 1) // 2
    return [history * (shape[-1] if last else shape[0]), *config.channels], height * width


class _Tower(nn.Module):
    """What an image of one shape passes."""

    def __init__(
        self,
        config: ImpalaEncoderConfig,
        shape: tuple[int, ...],
        history: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.shape, self._last = shape, channels_are_last(shape)
        widths, pixels = _tower_widths(config, shape, history)
        self.stages = nn.ModuleList()
        for inputs, outputs in itertools.pairwise(widths):
            convolutions = [_convolution(inputs, outputs, generator)]
            convolutions += [
                _convolution(outputs, outputs, generator) for _ in range(2 * config.blocks)
            ]
            self.stages.append(nn.ModuleList(convolutions))
        inputs = widths[-1] * pixels
        self.out = (
            nn.Linear(inputs, config.features, dtype=torch.float32, device="meta")
            if generator is None
            else linear(inputs, config.features, generator=generator)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns features (B, F) of the pixels of m images each, (B, m, P)."""
        x = pixels.reshape(*pixels.shape[:2], *self.shape)
        if self._last:
            x = x.movedim(-1, 2)
        x = x.flatten(1, 2) / 255 - 0.5
        for stage in self.stages:
            first, *rest = stage.children()
            x = functional.max_pool2d(first(x), 3, stride=2, padding=1)
            for one, two in zip(rest[::2], rest[1::2], strict=True):
                x = x + two(functional.relu(one(functional.relu(x))))
        features: Tensor = functional.relu(self.out(functional.relu(x).flatten(1)))
        return features


def _convolution(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Conv2d:
    """Returns a convolution of 3 by 3 that keeps the size, in torch's law from ``generator``."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, dtype=torch.float32, device="meta")
    if generator is not None:
        layer.weight = nn.Parameter(
            torch.empty(outputs, inputs, 3, 3, dtype=torch.float32, device="cpu")
        )
        layer.bias = nn.Parameter(torch.empty(outputs, dtype=torch.float32, device="cpu"))
        for parameter in layer.parameters():
            uniform_(parameter, 9 * inputs, generator)
    return layer
