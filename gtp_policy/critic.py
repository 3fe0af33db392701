r"""The critic: an ensemble of Q networks, and what the advantage is measured against."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gtp_policy._config import MOST_HIDDEN, Bool, Config, Float, Int, Width
from gtp_policy._random import new_stream
from gtp_policy.functional import check_dims, check_kind, check_like, check_rows, check_shape
from gtp_policy.kernels.activations import Activation
from gtp_policy.kernels.mish import mish
from gtp_policy.networks import features_dim, mlp, uniform_
from gtp_policy.spaces import ObservationNormalizer

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place: what a layer computed is used nowhere else.
    "mish": functools.partial(mish, inplace=True),
    "gelu": functional.gelu,
    "relu": functional.relu,
}


class QEnsembleConfig(Config):
    """The choices of a `QEnsemble`.

    Example:
        >>> from gtp_policy import QEnsembleConfig
        >>> QEnsembleConfig(members=4).members
        4
    """

    before: ClassVar[Mapping[str, Any]] = {"layer_norm": False}

    hidden: tuple[Width, ...] = Field(
        default=(256, 256, 256),
        min_length=1,
        max_length=MOST_HIDDEN,
        description="Widths of the hidden layers.",
    )
    members: Int = Field(
        default=2, ge=1, le=10_000, description="N, number of independent Q networks."
    )
    layer_norm: Bool = Field(
        default=True,
        description="Layer normalisation before each activation: values far from the data stay "
        "bounded.",
    )
    activation: Activation = Field(
        default="mish", description="Activation of the hidden layers; gelu is the exact one."
    )
    reduction: Literal["min", "mean"] = Field(
        default="min",
        description="What one value is made of those of the members: their minimum, or their mean "
        "less rho times their standard deviation.",
    )
    rho: Float = Field(
        default=0.0,
        ge=0,
        description="Pessimism of the mean, in population standard deviations over the members; "
        "of no effect on the minimum.",
    )

    def reduce(self, q: Tensor, dim: int = 0) -> Tensor:
        r"""Returns one value for those of the N members: in targets, advantages and choices alike.

        .. math:: \min_j Q_j \quad \text{or} \quad
            \tfrac1N \sum_j Q_j - \rho \, \mathrm{std}_j \, Q_j

        Args:
            q: Values, N of them along ``dim``.
            dim: Where the members are.

        Returns:
            Values of one dimension less.

        References:
            | Uncertainty-Based Offline Reinforcement Learning with Diversified Q-Ensemble
            | (An et al., 2021), section 3, https://arxiv.org/abs/2110.01548

        Example:
            >>> import torch
            >>> from gtp_policy import QEnsembleConfig
            >>> q = torch.tensor([[1.0], [3.0]])
            >>> QEnsembleConfig().reduce(q), QEnsembleConfig(reduction="mean", rho=0.5).reduce(q)
            (tensor([1.]), tensor([1.5000]))
        """
        if self.reduction == "min":
            return q.amin(dim)
        mean = q.mean(dim)
        return mean - self.rho * q.std(dim, correction=0) if self.rho else mean

    def reduction_slope(self, q: Tensor, dim: int = 0) -> Tensor:
        """Returns the derivative of `reduce` by the members' values.

        Members that share the minimum share its derivative; where all values are equal, the
        standard deviation has none.

        Args:
            q: Values, N of them along ``dim``.
            dim: Where the members are.

        Returns:
            Slopes, of the same shape.

        Example:
            >>> import torch
            >>> from gtp_policy import QEnsembleConfig
            >>> QEnsembleConfig().reduction_slope(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
            tensor([[1.0000, 0.5000],
                    [0.0000, 0.5000]])
        """
        if self.reduction == "min":
            lowest = (q == q.amin(dim, keepdim=True)).to(q.dtype)
            return lowest / lowest.sum(dim, keepdim=True)
        std, mean = torch.std_mean(q, dim, correction=0, keepdim=True)
        deviation = torch.where(std > 0, (q - mean) / std, torch.zeros_like(q))
        return (1 - self.rho * deviation) / q.shape[dim]


class QEnsemble(nn.Module):
    r"""N independent Q networks evaluated as one batch of matrices.

    ``critic.config.reduce(critic(obs, action))`` makes one value of those of the members.

    Args:
        obs_dim: O.
        action_dim: A.
        config: The choices.
        encoder: Module from normalised observations (B, O) to features (B, ``features_dim``); one
            for all members. Default: none.
        seed: Seed of the initial parameters.

    Raises:
        ValueError: If a dimension is smaller than 1.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 16, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy import QEnsemble
        >>> QEnsemble(obs_dim=3, action_dim=2)(torch.zeros(5, 3), torch.zeros(5, 2)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: QEnsembleConfig | None = None,
        *,
        encoder: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        obs_dim, action_dim = check_dims(obs_dim, action_dim)
        self.config = config = QEnsembleConfig() if config is None else config
        check_kind("config", config, QEnsembleConfig)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.normalizer = ObservationNormalizer(obs_dim)
        self.encoder = encoder
        generator = new_stream(seed, "critic")
        widths = [features_dim(encoder, obs_dim) + action_dim, *config.hidden, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.gains, self.shifts = nn.ParameterList(), nn.ParameterList()
        for i, o in itertools.pairwise(widths):
            weight = torch.empty(config.members, i, o, dtype=torch.float32, device="cpu")
            bias = torch.empty(config.members, 1, o, dtype=torch.float32, device="cpu")
            uniform_(weight, i, generator)
            uniform_(bias, i, generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        if config.layer_norm:
            for width in config.hidden:
                gain = torch.ones(config.members, 1, width, dtype=torch.float32, device="cpu")
                self.gains.append(nn.Parameter(gain))
                self.shifts.append(nn.Parameter(torch.zeros_like(gain)))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns the value of each action by each member.

        Args:
            obs: Observation, shape (B, O).
            action: Action in [-1, 1], shape (B, A).

        Returns:
            Q values, shape (N, B).

        Raises:
            ShapeError: If a shape disagrees with the critic's dimensions.

        Example:
            >>> import torch
            >>> from gtp_policy import QEnsemble
            >>> QEnsemble(3, 2)(torch.zeros(5, 3), torch.zeros(5, 2)).amin(0).shape
            torch.Size([5])
        """
        check_rows("obs", obs, self.obs_dim)
        check_shape("action", action, (obs.shape[0], self.action_dim))
        for name, value in (("obs", obs), ("action", action)):
            check_like(name, value, self.weights[0])
        features = self.normalizer(obs)
        if self.encoder is not None:
            features = self.encoder(features)
        x = torch.cat([features, action], dim=-1)
        x = x.expand(self.config.members, *x.shape)
        last, activate = len(self.weights) - 1, _ACTIVATIONS[self.config.activation]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i == last:
                break
            if self.config.layer_norm:
                x = functional.layer_norm(x, x.shape[-1:]) * self.gains[i] + self.shifts[i]
            x = activate(x)
        return x.squeeze(-1)


class ValueNetwork(nn.Module):
    """A state-value network V(obs).

    Args:
        obs_dim: O.
        hidden: Widths of the hidden layers.
        encoder: Module from normalised observations (B, O) to features (B, ``features_dim``).
            Default: none.
        seed: Seed of the initial parameters.

    Example:
        >>> import torch
        >>> from gtp_policy.critic import ValueNetwork
        >>> ValueNetwork(3, (16,))(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: tuple[int, ...],
        *,
        encoder: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.normalizer = ObservationNormalizer(obs_dim)
        self.encoder = encoder
        width = features_dim(encoder, obs_dim)
        self.network = mlp(width, hidden, 1, generator=new_stream(seed, "value"))

    def forward(self, obs: Tensor) -> Tensor:
        """Returns state values.

        Args:
            obs: Observation, shape (B, O).

        Returns:
            V, shape (B,).
        """
        features = self.normalizer(obs)
        if self.encoder is not None:
            features = self.encoder(features)
        value: Tensor = self.network(features)
        return value.squeeze(-1)


class PolicyBaseline(Config):
    r"""V(obs) as the mean value of actions that the EMA actor samples.

    .. math:: V(o) = \tfrac1M \sum_{m=1}^M \min_j Q_j(o, a_m), \quad a_m \sim \pi_{\theta^-}

    or with what the critic's ``reduction`` says instead of the minimum, as everywhere.
    Costs M K network passes an update; on a CPU M = 4 makes an update about 1.7 times as long.

    Example:
        >>> from gtp_policy import PolicyBaseline
        >>> PolicyBaseline(samples=1).samples
        1
    """

    kind: Literal["policy"] = Field(default="policy", description="Discriminator of the union.")
    samples: Int = Field(
        default=4, ge=1, le=10_000, description="M, sampled actions per observation."
    )


class ExpectileBaseline(Config):
    r"""V(obs) as a network fitted to an upper expectile of the critic over the data's actions.

    .. math:: \min_V E\,|\tau - 1(d < 0)|\, d^2, \quad d = \min_j Q_j^-(o, a) - V(o)

    Costs one small network instead of M K passes of the actor.

    References:
        | Offline Reinforcement Learning with Implicit Q-Learning (Kostrikov et al., 2021), eq. 5
        | https://arxiv.org/abs/2110.06169

    Example:
        >>> from gtp_policy import ExpectileBaseline
        >>> ExpectileBaseline(expectile=0.9).expectile
        0.9
    """

    kind: Literal["expectile"] = Field(
        default="expectile", description="Discriminator of the union."
    )
    expectile: Float = Field(
        default=0.7, gt=0, lt=1, description="0.5 is the mean, 1 would be the max."
    )
    hidden: tuple[Width, ...] = Field(
        default=(256, 256, 256),
        min_length=1,
        max_length=MOST_HIDDEN,
        description="Widths of the value network's hidden layers.",
    )

    def loss(self, q: Tensor, value: Tensor) -> Tensor:
        """Returns what V is fitted by, `expectile_loss`.

        Args:
            q: Action values, shape (B,).
            value: State values, shape (B,).

        Returns:
            Loss per transition, shape (B,).

        Raises:
            ShapeError: If the shapes differ.
        """
        return expectile_loss(q, value, self.expectile)

    def slope(self, q: Tensor, value: Tensor) -> Tensor:
        """Returns the derivative of `loss` by the state values.

        Args:
            q: Action values, shape (..., B).
            value: State values, of the same shape.

        Returns:
            Slopes, of the same shape.
        """
        difference = q - value
        return difference * _by_side(difference, 1 - self.expectile, self.expectile) * -2


class QuantileBaseline(Config):
    r"""V(obs) as a network fitted to an upper quantile of the critic over the data's actions.

    .. math:: \min_V E\,|\tau - 1(d < 0)|\, |d|, \quad d = \min_j Q_j^-(o, a) - V(o)

    Unlike an expectile it is not moved by how far above it the best values are.

    References:
        | IDQL: Implicit Q-Learning as an Actor-Critic Method with Diffusion Policies
        | (Hansen-Estruch et al., 2023), section 4, https://arxiv.org/abs/2304.10573

    Example:
        >>> from gtp_policy import QuantileBaseline
        >>> QuantileBaseline(quantile=0.9).quantile
        0.9
    """

    kind: Literal["quantile"] = Field(default="quantile", description="Discriminator of the union.")
    quantile: Float = Field(
        default=0.7, gt=0, lt=1, description="0.5 is the median, 1 would be the max."
    )
    hidden: tuple[Width, ...] = Field(
        default=(256, 256, 256),
        min_length=1,
        max_length=MOST_HIDDEN,
        description="Widths of the value network's hidden layers.",
    )

    def loss(self, q: Tensor, value: Tensor) -> Tensor:
        """Returns what V is fitted by, `quantile_loss`.

        Args:
            q: Action values, shape (B,).
            value: State values, shape (B,).

        Returns:
            Loss per transition, shape (B,).

        Raises:
            ShapeError: If the shapes differ.
        """
        return quantile_loss(q, value, self.quantile)

    def slope(self, q: Tensor, value: Tensor) -> Tensor:
        """Returns the derivative of `loss` by the state values.

        Args:
            q: Action values, shape (..., B).
            value: State values, of the same shape.

        Returns:
            Slopes, of the same shape.
        """
        difference = q - value
        return difference.sign() * _by_side(difference, self.quantile - 1, -self.quantile)


Baseline = Annotated[
    PolicyBaseline | ExpectileBaseline | QuantileBaseline, Field(discriminator="kind")
]
NetworkBaseline = ExpectileBaseline | QuantileBaseline
"""Those that fit a value network."""


def expectile_loss(q: Tensor, value: Tensor, expectile: float) -> Tensor:
    r"""Returns the asymmetric squared error whose minimiser is an expectile of q.

    .. math:: L(d) = |\tau - 1(d < 0)| \, d^2, \quad d = q - v

    Args:
        q: Action values, shape (B,).
        value: State values, shape (B,).
        expectile: :math:`\tau`, in (0, 1).

    Returns:
        Loss per transition, shape (B,).

    Raises:
        ShapeError: If the shapes differ.

    References:
        | Offline Reinforcement Learning with Implicit Q-Learning (Kostrikov et al., 2021), eq. 5
        | https://arxiv.org/abs/2110.06169

    Example:
        >>> import torch
        >>> from gtp_policy.critic import expectile_loss
        >>> expectile_loss(torch.tensor([1.0, -1.0]), torch.zeros(2), 0.75)
        tensor([0.7500, 0.2500])
    """
    check_shape("value", value, tuple(q.shape))
    difference = q - value
    return _by_side(difference, 1 - expectile, expectile) * difference.square()


def quantile_loss(q: Tensor, value: Tensor, quantile: float) -> Tensor:
    r"""Returns the asymmetric absolute error whose minimiser is a quantile of q.

    .. math:: L(d) = |\tau - 1(d < 0)| \, |d|, \quad d = q - v

    Args:
        q: Action values, shape (B,).
        value: State values, shape (B,).
        quantile: :math:`\tau`, in (0, 1).

    Returns:
        Loss per transition, shape (B,).

    Raises:
        ShapeError: If the shapes differ.

    References:
        | Regression Quantiles (Koenker and Bassett, 1978), Econometrica 46 (1)
        | https://doi.org/10.2307/1913643

    Example:
        >>> import torch
        >>> from gtp_policy.critic import quantile_loss
        >>> quantile_loss(torch.tensor([2.0, -2.0]), torch.zeros(2), 0.75)
        tensor([1.5000, 0.5000])
    """
    check_shape("value", value, tuple(q.shape))
    difference = q - value
    return _by_side(difference, 1 - quantile, quantile) * difference.abs()


def _by_side(difference: Tensor, below: float, above: float) -> Tensor:
    """Returns one factor where a difference is negative and another elsewhere, in its dtype."""
    # Of two plain numbers torch would make float32, whatever they are multiplied with.
    return torch.where(
        difference < 0, difference.new_full((), below), difference.new_full((), above)
    )
