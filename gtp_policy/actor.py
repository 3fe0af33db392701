r"""The policy: a network made into a flow map, and the sampler that walks along it."""

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gtp_policy._config import MOST_HIDDEN, AnyFloat, Config, Float, Int, Width, is_name
from gtp_policy._fingerprint import SAMPLING, knows
from gtp_policy._folding import DEVICES, FoldedActor, Foldings, fold, reasons
from gtp_policy._numbers import as_int
from gtp_policy._random import generator_or_private, new_stream
from gtp_policy.errors import StateMismatchError
from gtp_policy.functional import (
    check_dims,
    check_finite,
    check_kind,
    check_like,
    check_rows,
    check_shape,
    flow_map,
    precondition,
)
from gtp_policy.kernels.folded import Folded
from gtp_policy.kernels.switch import engine, plain
from gtp_policy.networks import FlowMapMLP, LogRatioEmbedding, features_dim
from gtp_policy.samplers import JumpSampler, Sampler
from gtp_policy.spaces import ObservationNormalizer
from gtp_policy.times import KarrasTimes, LinearTimes, TimeSchedule

_SMALLEST_STD = 1e-4
_MOST_STEPS = 1_000_000
# Their names in the metadata of a state.
_SHARE, _NORMALIZED = "mode_share", "normalized_by"
_Mean = Annotated[AnyFloat, Field(ge=-1, le=1)]
# Of less, float32 does not resolve what the flow would move; of actions in [-1, 1] it is at most 1.
_Std = Annotated[Float, Field(ge=1e-6, le=1)]


class ActionStatistics(Config):
    r"""Mean and standard deviation of each dimension of the data's actions, in units of [-1, 1].

    With them the flow moves standardised actions, which spread alike in every dimension:

    .. math:: x_0 = \frac{a - mean}{std}

    and a sampled :math:`x_0` becomes an action by the inverse, clipped to [-1, 1]. Where joints
    move by a hundredth of their range, nothing else lets one network fit them with others.

    Example:
        >>> from gtp_policy.actor import ActionStatistics
        >>> ActionStatistics(mean=(0.0, 0.9), std=(0.5, 0.01)).std
        (0.5, 0.01)
    """

    mean: tuple[_Mean, ...] = Field(
        min_length=1, description="Mean of each dimension, (A,), in [-1, 1]."
    )
    std: tuple[_Std, ...] = Field(
        min_length=1, description="Standard deviation of each dimension, (A,), from 1e-6 to 1."
    )

    @classmethod
    def of(cls, mean: Tensor, std: Tensor) -> Self:
        """Builds them from what a dataset measures, with room for a dimension that never varies.

        Warns where a dimension varies by less than float32 resolves in [-1, 1] to a tenth of a
        percent: what it does there is lost. A constant dimension is given back as it is.

        Args:
            mean: Mean, shape (A,).
            std: Standard deviation, shape (A,), >= 0.

        Returns:
            The statistics, with each std at least 1e-4.

        Example:
            >>> import torch
            >>> from gtp_policy.actor import ActionStatistics
            >>> ActionStatistics.of(torch.tensor([0.5, 0.25]), torch.tensor([0.25, 0.0]))
            ActionStatistics(mean=(0.5, 0.25), std=(0.25, 0.0001))
        """
        spread = std.tolist()
        for i, value in enumerate(spread):
            if 0 < value < _SMALLEST_STD and value > abs(float(mean[i])) * 1e-6:
                warnings.warn(
                    f"Action dimension {i} varies by a std of {value:.1g} of its range of 2, below "
                    f"the {_SMALLEST_STD} that can be fitted: the policy will not reproduce how. "
                    "Give low and high nearer to the data, or remove the dimension.",
                    stacklevel=3,
                )
        # At the edge of the range, data is off by rounding errors.
        return cls(
            mean=tuple(mean.clamp(-1.0, 1.0).tolist()),
            std=tuple(min(max(s, _SMALLEST_STD), 1.0) for s in spread),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean and std are of one length: got {len(self.mean)} and {len(self.std)}"
            )
        return self


class FlowMapActorConfig(Config):
    """The choices of a `FlowMapActor`.

    Example:
        >>> from gtp_policy import FlowMapActorConfig
        >>> config = FlowMapActorConfig(hidden=(128, 128), steps=2)
        >>> FlowMapActorConfig.model_validate_json(config.model_dump_json()) == config
        True
    """

    before: ClassVar[Mapping[str, Any]] = {
        "embedding": "log",
        "action_statistics": None,
        "steps": 5,
        "times": KarrasTimes(),
    }

    hidden: tuple[Width, ...] = Field(
        default=(256, 256, 256),
        min_length=1,
        max_length=MOST_HIDDEN,
        description="Widths of the default network's hidden layers.",
    )
    time_dim: Int = Field(
        default=32,
        ge=2,
        le=4096,
        multiple_of=2,
        description="Features of each of the two time embeddings.",
    )
    embedding: Literal["log", "log_ratio"] = Field(
        default="log_ratio",
        description="What the time embeddings are made of: ln(t) at high and low frequencies, or "
        "the softened logarithm of noise over signal at low ones, see `LogRatioEmbedding`.",
    )
    steps: Int = Field(
        default=1, ge=1, le=10_000, description="K, jumps per sampled action; can be set per call."
    )
    sigma_data: Float | None = Field(
        default=None,
        gt=0,
        description="Standard deviation of what the flow moves, for the preconditioning. None: 1 "
        "of standardised actions; of actions as they are, in [-1, 1], taken from the dataset by "
        "GTPLearner.from_dataset, 0.5 without a dataset.",
    )
    action_statistics: ActionStatistics | None = Field(
        default=None,
        description="What the flow standardises actions by; None: it moves actions as they are. "
        "Taken from the dataset by GTPLearner.from_dataset with normalize_actions.",
    )
    times: TimeSchedule = Field(
        default_factory=lambda: LinearTimes(rho=1.75),
        description="Path, time range and spacing of the grids.",
    )
    sampler: Sampler = Field(
        default_factory=JumpSampler, description="How the K steps go from noise to an action."
    )
    history: Int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="m, observations of an episode that stand in one, the newest last. Taken from "
        "a dataset of with_history by GTPLearner.from_dataset.",
    )
    chunk: Int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="h, steps of the environment that an action holds, the first one first. Taken "
        "from a dataset of with_chunks by GTPLearner.from_dataset.",
    )

    @model_validator(mode="after")
    def _grid_falls(self) -> Self:
        self.times.grid(self.steps, dtype=torch.float32)  # says what is wrong with it
        return self


class FlowMapActor(nn.Module):
    r"""A generative policy: the map from noise to action along a learned ODE, for any two times.

    .. math:: \Phi(o, x_t, t, s) = \tfrac{s}{t} x_t + (1 - \tfrac{s}{t}) \varphi(o, x_t, t, s)

    .. math:: \varphi(o, x_t, t, s) = c_{skip}(t) x_t + c_{out}(t) F(o, c_{in}(t) x_t, t, s)

    For any network F: :math:`\Phi(x, t, t) = x` and :math:`\Phi(x, t, 0) = \varphi(x, t, 0)`
    exactly. The denoiser :math:`E[a | x_t]` is ``endpoint`` at s = t, never :math:`\Phi(x, t, t)`.

    Args:
        obs_dim: O, number of observation dimensions.
        action_dim: A, number of action dimensions; actions live in [-1, 1].
        config: The choices.
        network: Backbone F instead of the default MLP, called as
            ``network(obs, x, t, s) -> (B, A)`` with normalised observations (B, O), noisy actions
            scaled to unit variance (B, A) and times (B,) in action units.
        encoder: Module from normalised observations (B, O) to features (B, F), with the width F as
            its attribute ``features_dim``; the network then sees features instead of observations.
            For images and the like. Default: none, F = O.
        seed: Seed of the initial parameters and of the fixed noise.

    Attributes:
        normalized_by: What normalises observations before the actor sees them, such as
            "VecNormalize"; None: nothing that is known of. No file holds that, so that an export
            is refused. Goes with states and checkpoints.

    Raises:
        ValueError: If a dimension is smaller than 1, or no multiple of the config's ``history`` or
            ``chunk``.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025),
        | eq. 4 and 15, https://arxiv.org/abs/2510.11499

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor
        >>> actor = FlowMapActor(obs_dim=3, action_dim=2)
        >>> action = actor.sample(torch.zeros(4, 3))
        >>> action.shape, bool((action.abs() <= 1).all())
        (torch.Size([4, 2]), True)
    """

    fixed_noise: Tensor
    action_mean: Tensor
    action_scale: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        config: FlowMapActorConfig | None = None,
        *,
        network: nn.Module | None = None,
        encoder: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        obs_dim, action_dim = check_dims(obs_dim, action_dim)
        config = FlowMapActorConfig() if config is None else config
        check_kind("config", config, FlowMapActorConfig)
        for name, dim, of in (
            ("history", obs_dim, config.history),
            ("chunk", action_dim, config.chunk),
        ):
            if dim % of:
                raise ValueError(
                    f"`{name}` does not fit: got {of} with {dim} numbers, expected a divisor of "
                    "them. Dimensions are those of all steps together."
                )
        self.config = _with_scale(config)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.normalizer = ObservationNormalizer(obs_dim)
        self.encoder = encoder
        # What `gtp_policy.acting.mode_share` found when a learner last looked.
        self.mode_share: float | None = None
        self.normalized_by: str | None = None
        given = {
            parameter.dtype
            for module in (network, encoder)
            if isinstance(module, nn.Module)
            for parameter in module.parameters()
            if parameter.is_floating_point()
        }
        if network is not None:
            check_kind("network", network, nn.Module)
        else:
            network = FlowMapMLP(
                features_dim(encoder, obs_dim),
                action_dim,
                config.hidden,
                config.time_dim,
                floor=config.times.floor,
                embedding=LogRatioEmbedding(config.time_dim, config.times.path)
                if config.embedding == "log_ratio"
                else None,
                generator=new_stream(seed, "actor"),
            )
        self.network = network
        # Not in torch's default dtype, in which also other numbers would be drawn.
        noise = torch.randn(
            action_dim,
            generator=new_stream(seed, "fixed noise"),
            dtype=torch.float32,
            device="cpu",
        )
        self.register_buffer("fixed_noise", noise)
        # The config says them: the state need not.
        for name in ("action_mean", "action_scale"):
            self.register_buffer(name, torch.empty_like(noise), persistent=False)
        self._foldings = Foldings()
        if given == {torch.float64}:  # modules of the caller's, which take nothing else
            self.to(torch.float64)
        self._place_statistics_()

    @property
    def times(self) -> TimeSchedule:
        """The time range, from which training and sampling take their grids."""
        return self.config.times

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the actions that the preconditioning assumes."""
        return cast(float, self.config.sigma_data)

    def set_action_scales_(
        self, sigma_data: float | None = None, statistics: ActionStatistics | None = None
    ) -> None:
        """Changes the scales of the actions, in place: another flow, to be trained.

        Args:
            sigma_data: Their standard deviation as the preconditioning assumes it; default 1 with
                statistics, 0.5 without.
            statistics: What the flow standardises them by; default actions as they are.

        Raises:
            ValueError: If they are of another number of dimensions.

        Example:
            >>> from gtp_policy import FlowMapActor
            >>> from gtp_policy.actor import ActionStatistics
            >>> actor = FlowMapActor(3, 1)
            >>> actor.set_action_scales_(statistics=ActionStatistics(mean=(0.5,), std=(0.1,)))
            >>> actor.action_scale
            tensor([0.1000])
        """
        self.config = _with_scale(
            self.config.replace(sigma_data=sigma_data, action_statistics=statistics)
        )
        self._place_statistics_()

    @torch.no_grad()
    def _place_statistics_(self) -> None:
        statistics = self.config.action_statistics
        if statistics is None:
            self.action_mean.zero_()
            self.action_scale.fill_(1.0)
            return
        if len(statistics.mean) != self.action_dim:
            raise ValueError(
                f"`action_statistics` are of another action: got {len(statistics.mean)} "
                f"dimensions, expected action_dim={self.action_dim}."
            )
        self.action_mean.copy_(torch.tensor(statistics.mean, dtype=torch.float64, device="cpu"))
        self.action_scale.copy_(torch.tensor(statistics.std, dtype=torch.float64, device="cpu"))

    def to_standard(self, action: Tensor) -> Tensor:
        """Maps actions to what the flow moves: the inverse of `to_action` inside the range.

        Args:
            action: Action in [-1, 1], shape (..., A).

        Returns:
            :math:`x_0`, shape (..., A); the action itself without statistics.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor, FlowMapActorConfig
            >>> from gtp_policy.actor import ActionStatistics
            >>> statistics = ActionStatistics(mean=(0.5,), std=(0.1,))
            >>> actor = FlowMapActor(3, 1, FlowMapActorConfig(action_statistics=statistics))
            >>> x = actor.to_standard(torch.tensor([[0.6]]))
            >>> bool((x - 1).abs() < 1e-6), actor.to_action(x), actor.to_action(4 * x)
            (True, tensor([[0.6000]]), tensor([[0.9000]]))
        """
        if self.config.action_statistics is None:
            return action
        return (action - self.action_mean) / self.action_scale

    def to_action(self, x: Tensor) -> Tensor:
        """Maps where the flow ends to actions, clipped to [-1, 1].

        Args:
            x: :math:`x_0`, shape (..., A).

        Returns:
            Action in [-1, 1], shape (..., A).
        """
        if self.config.action_statistics is not None:
            x = torch.addcmul(self.action_mean, self.action_scale, x)
        return x.clamp(-1.0, 1.0)

    @property
    def device(self) -> torch.device:
        """Where the actor's parameters live, and its observations have to be."""
        return self.fixed_noise.device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of its parameters and observations."""
        return self.fixed_noise.dtype

    def endpoint(self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        r"""Predicts the endpoint :math:`\varphi`; at s = t, the denoised action.

        Args:
            obs: Observation, shape (B, O).
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), >= 0.
            s: Target time, shape (B,), 0 <= s <= t.

        Returns:
            :math:`\varphi(o, x_t, t, s)`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the actor's dimensions.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor
            >>> actor = FlowMapActor(3, 2)
            >>> t = torch.tensor([0.5])
            >>> actor.endpoint(torch.zeros(1, 3), torch.zeros(1, 2), t, t).shape
            torch.Size([1, 2])
        """
        check_rows("obs", obs, self.obs_dim)
        for name, value in (("obs", obs), ("x", x), ("t", t), ("s", s)):
            check_like(name, value, self.fixed_noise)
        return self._endpoint(self._features(obs), x, t, s)

    def _features(self, obs: Tensor) -> Tensor:
        features: Tensor = self.normalizer(obs)
        return features if self.encoder is None else self.encoder(features)

    def _endpoint(self, features: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        check_shape("x", x, (features.shape[0], self.action_dim))
        check_shape("t", t, (x.shape[0],))
        check_shape("s", s, (x.shape[0],))
        factors = precondition(t, self.sigma_data, self.times.path)
        skip, out, inner = (c.unsqueeze(-1) for c in factors)
        raw: Tensor = self.network(features, inner * x, t, s)
        # A backbone that returns (B, 1) would broadcast to every dimension without a word.
        check_shape("output of the network", raw, tuple(x.shape))
        return skip * x + out * raw

    def forward(
        self, obs: Tensor, x: Tensor, t: Tensor, s: Tensor, *, endpoint: bool = False
    ) -> Tensor:
        r"""Moves noisy actions along their trajectories from time t to time s.

        Args:
            obs: Observation, shape (B, O).
            x: Noisy action :math:`x_t`, shape (B, A).
            t: Start time, shape (B,), > 0.
            s: Target time, shape (B,), 0 <= s <= t.
            endpoint: Whether to return what `endpoint` does: a wrapper such as
                ``DistributedDataParallel`` has no method but this one.

        Returns:
            :math:`\Phi(o, x_t, t, s)`, shape (B, A).

        Raises:
            ShapeError: If the shapes disagree with each other or with the actor's dimensions.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor
            >>> actor, x, t = FlowMapActor(3, 2), torch.ones(1, 2), torch.tensor([0.5])
            >>> torch.equal(actor(torch.zeros(1, 3), x, t, t), x)
            True
        """
        end = self.endpoint(obs, x, t, s)
        return end if endpoint else flow_map(x, end, t, s)

    def sample(
        self,
        obs: Tensor,
        *,
        steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Samples actions: noise at time T, moved in K jumps to time 0, clipped at the end.

        .. math:: x_{t_0} = T z, \quad x_{t_{i+1}} = \Phi(o, x_{t_i}, t_i, t_{i+1})

        or as ``config.sampler`` says. The same noise gives the same action: to the last bit in an
        equal call, up to rounding in a batch of another size. For a deterministic policy see
        `act`; a zero noise would start a symmetric two-mode policy exactly between its modes and
        end there.

        Args:
            obs: Observation, shape (B, O).
            steps: K; default ``config.steps``. More steps, better samples.
            noise: z, standard normal, shape (B, `noise_dim`), which is (B, A) unless the sampler is
                stochastic; default drawn.
            generator: Source of the noise, on the observations' device; default a stream of the
                package's own, never torch's global one.

        Returns:
            Actions in [-1, 1], shape (B, A).

        Raises:
            ShapeError: If a shape disagrees with the actor's dimensions.
            DataError: If ``obs`` or ``noise`` is no tensor of the actor's dtype and device.
            ValueError: If ``steps`` is no integer of at least 1.

        References:
            | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al.,
            | 2025), eq. 15, https://arxiv.org/abs/2510.11499

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor
            >>> actor, obs = FlowMapActor(3, 2), torch.zeros(4, 3)
            >>> z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
            >>> torch.equal(actor.sample(obs, noise=z), actor.sample(obs, noise=z))
            True
        """
        self.check_observations(obs)
        steps = self._steps(steps)
        folded = self._folded(obs, steps)
        # What is folded takes one noise per action.
        shape = obs.shape[0], self.noise_dim(steps) if folded is None else self.action_dim
        if noise is None:
            noise = _drawn(shape, obs, generator)
        else:
            check_like("noise", noise, obs)
            check_shape("noise", noise, shape)
        if folded is not None:
            return folded.sample(obs, noise)
        grid = self._grid(steps, obs)
        with torch.no_grad():
            return self.to_action(self._follow(obs, noise, grid))

    def sample_with_gradient(
        self, obs: Tensor, noise: Tensor, *, steps: int | None = None
    ) -> Tensor:
        """Samples actions for given noise, with a gradient to the actor's parameters.

        Args:
            obs: Observation, shape (B, O).
            noise: Standard normal, shape (B, `noise_dim`).
            steps: K; default ``config.steps``.

        Returns:
            Actions in [-1, 1], shape (B, A); the gradient of a clipped coordinate is 0.

        Raises:
            ShapeError: If a shape disagrees with the actor's dimensions.
            DataError: If ``obs`` or ``noise`` is no tensor of the actor's dtype and device.
            ValueError: If ``steps`` is no integer of at least 1.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor
            >>> actor = FlowMapActor(3, 2)
            >>> actor.sample_with_gradient(torch.zeros(4, 3), torch.ones(4, 2)).requires_grad
            True
        """
        self.check_observations(obs)
        check_like("noise", noise, obs)
        check_shape("noise", noise, (obs.shape[0], self.noise_dim(steps)))
        return self.to_action(self._follow(obs, noise, self._grid(steps, obs)))

    def noise_dim(self, steps: int | None = None) -> int:
        """Returns how many normal numbers an action is made of.

        Args:
            steps: K; default ``config.steps``.

        Returns:
            A, or K A for a stochastic sampler.

        Raises:
            ValueError: If ``steps`` is no integer of at least 1.

        Example:
            >>> from gtp_policy import FlowMapActor, FlowMapActorConfig
            >>> from gtp_policy.samplers import JumpSampler
            >>> FlowMapActor(3, 2, FlowMapActorConfig(sampler=JumpSampler(gamma=1.0))).noise_dim(3)
            6
        """
        return self.config.sampler.noises(self._steps(steps)) * self.action_dim

    def _steps(self, steps: int | None) -> int:
        """Returns K, checked."""
        found = self.config.steps if steps is None else as_int(steps)
        if found is None or not 1 <= found <= _MOST_STEPS:
            raise ValueError(
                f"`steps` is out of range: got {steps!r}, expected an integer >= 1, and at most "
                f"{_MOST_STEPS}."
            )
        return found

    def _grid(self, steps: int | None, obs: Tensor) -> Tensor:
        return self.times.grid(self._steps(steps), device=obs.device, dtype=obs.dtype)

    def _follow(self, obs: Tensor, noise: Tensor, grid: Tensor) -> Tensor:
        # What depends on the observation alone is computed once, not once per jump.
        features, path = self._features(obs), self.times.path
        return self.config.sampler.follow(self._jump, self._endpoint, features, noise, grid, path)

    def _folded(self, obs: Tensor, steps: int) -> FoldedActor | None:
        """Returns what samples actions without autograd, if there is such a way at this moment."""
        if not obs.shape[0] or not plain(obs, DEVICES) or _autocast():
            return None
        return self._foldings.find(self, steps, self._changes)[0]

    def fold(self, steps: int | None = None) -> Folded | None:
        """Returns the network without what is constant along the grid, or None if it is not ours.

        Args:
            steps: K; default ``config.steps``.

        Returns:
            The default network along the default sampler's K jumps, which shares the parameters'
            memory; None of an actor with another network, an encoder, another sampler or hooks.

        Raises:
            ValueError: If ``steps`` is no integer of at least 1.

        Example:
            >>> from gtp_policy import FlowMapActor
            >>> FlowMapActor(3, 2).fold(2).steps
            2
        """
        steps = self._steps(steps)
        if next(reasons(self, self._changes()), None) is not None:
            return None
        return fold(self, steps)

    def _changes(self) -> Iterator[str]:
        """Yields what of the flow map and its sampling is not the library's own."""
        if self.config.sampler != JumpSampler():
            yield "has a sampler that is not the default one"
        own = type(self)
        # Of this class itself, whatever else makes it fast says what was replaced.
        for name in SAMPLING[1:] if own is not FlowMapActor else ():
            if getattr(own, name) is not _REFERENCE[name]:
                what = "its end" if name == "to_action" else "the flow map"
                yield f"is a {own.__name__}, which changes {what} ({name})"
                return

    def explain(self, rows: int | None = None, *, steps: int | None = None) -> list[str]:
        """Returns what samples the actions, and why not what would be faster.

        Args:
            rows: Number of observations; default 1.
            steps: K; default ``config.steps``.

        Returns:
            One line.

        Example:
            >>> from gtp_policy import FlowMapActor
            >>> FlowMapActor(3, 2).explain(rows=100)
            ['sample: torch (its operators, in place), because its matrix products are the faster \
ones beyond 24 rows']
        """
        backend, why_not = self._backend(rows or 1, steps or self.config.steps)
        line = {
            "numba": "numba (one compiled function)",
            "triton": "triton (one kernel)",
            "torch": "torch (its operators, in place)",
            "reference": "reference (modules, jump by jump)",
        }[backend]
        return [f"sample: {line}, because {why_not}" if why_not else f"sample: {line}"]

    def _backend(self, rows: int, steps: int) -> tuple[str, str]:
        """Returns "numba", "triton", "torch" or "reference", and why not what would be faster."""
        sampler, why_not = self._foldings.find(self, steps, self._changes)
        if not why_not and engine() == "reference":
            why_not = 'kernels.using("reference") selects it'
        if not why_not and _autocast():
            why_not = "autocast is on"
        if not why_not and not plain(self.fixed_noise, DEVICES):
            why_not = "a compiler or a function transform is at work, or the dtype is unusual"
        return ("reference", why_not) if why_not or sampler is None else sampler.backend(rows)

    def _jump(self, features: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return flow_map(x, self._endpoint(features, x, t, s), t, s)

    def _made_for(self) -> dict[str, Any]:
        state = self.config.model_dump(mode="json", include=_FLOW_MAP)
        # States from before there was a choice say nothing of it.
        if self.config.action_statistics is None:
            del state["action_statistics"]
        if self.config.embedding == "log":
            del state["embedding"]
        if state["times"] == LinearTimes().model_dump(mode="json"):  # the same
            del state["times"]["rho"]
        return state

    def get_extra_state(self) -> Tensor:
        """Returns what parameters alone do not say: the scale, times and embedding they are for.

        As a tensor, so that ``state_dict`` holds nothing else: it can be moved, stored by
        safetensors and averaged with that of another actor of the same choices.

        Returns:
            JSON as numbers of ASCII, on the CPU, int32: sums of them stay in range.

        Example:
            >>> from gtp_policy import FlowMapActor
            >>> bytes(FlowMapActor(3, 2).get_extra_state().tolist())[:13]
            b'{"embedding":'
        """
        text = json.dumps(self._made_for()).encode("ascii")
        return torch.tensor(list(text), dtype=torch.int32, device="cpu")

    def set_extra_state(self, state: Tensor | Mapping[str, Any]) -> None:
        """Checks that parameters fit this actor; called by ``load_state_dict``.

        Args:
            state: What `get_extra_state` returned where the parameters were saved, in any dtype and
                on any device; earlier versions wrote it as a dictionary.

        Raises:
            StateMismatchError: If they were made for another ``sigma_data``, other times or other
                statistics of actions.
        """
        got, own = _decoded(state), self._made_for()
        if got != own:
            raise StateMismatchError(
                f"The parameters belong to another flow map: got {got}, expected {own}. Build "
                "the actor from the config that was saved with them."
            )

    def _save_to_state_dict(
        self,
        destination: dict[str, Any],
        prefix: str,
        keep_vars: bool,
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Where torch keeps versions: copies and ``torch.save`` keep it, an average has none.
        told = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if told is not None:
            told[_SHARE], told[_NORMALIZED] = self.mode_share, self.normalized_by

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,  # noqa: ANN401 - as torch passes them
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        # Wherever in a module this actor is: other parameters leave no old answer behind.
        share = local_metadata.get(_SHARE)
        self.mode_share = share if type(share) is float and 0 <= share <= 1 else None
        # An average says nothing of it, and is of networks that saw the same.
        name = local_metadata.get(_NORMALIZED, self.normalized_by)
        self.normalized_by = name if is_name(name) else None

    def check_observations(self, obs: Tensor) -> None:
        """Raises unless observations are what the networks take: for values from outside.

        Args:
            obs: Observation, shape (B, O), of the actor's dtype and on its device.

        Raises:
            ShapeError: If the shape is not (B, O).
            DataError: If it is no tensor, or one of another dtype or device, or on the CPU holds
                NaN or infinity.

        Example:
            >>> import torch
            >>> from gtp_policy import FlowMapActor
            >>> FlowMapActor(3, 2).check_observations(torch.zeros(1, 3, dtype=torch.float64))
            Traceback (most recent call last):
            ...
            gtp_policy.errors.DataError: `obs` has the wrong dtype: got torch.float64, expected \
torch.float32. Convert it with obs.to(torch.float32).
        """
        like = cast(Tensor, self._buffers["fixed_noise"])
        # The same checks in half the time; the two calls below only raise what they find.
        if not (
            isinstance(obs, Tensor)
            and obs.dtype == like.dtype
            and obs.device == like.device
            and obs.layout == torch.strided
            and obs.ndim == 2
            and obs.shape[1] == self.obs_dim
        ):
            check_like("obs", obs, like)
            check_rows("obs", obs, self.obs_dim)
        check_finite("obs", obs)


def _with_scale(config: FlowMapActorConfig) -> FlowMapActorConfig:
    """Returns a config whose ``sigma_data`` is no longer open."""
    assumed = 0.5 if config.action_statistics is None else 1.0
    return config.replace(sigma_data=config.sigma_data or assumed)


def _decoded(state: Tensor | Mapping[str, Any]) -> object:
    """Returns what `FlowMapActor.get_extra_state` put into a tensor, or an earlier version said."""
    if not isinstance(state, Tensor):
        return state
    try:
        # An average of equal numbers is that number, up to rounding.
        return json.loads(bytes(state.double().round().to(torch.uint8).tolist()))
    except (ValueError, RecursionError):
        return "something unreadable"


def _drawn(shape: tuple[int, int], obs: Tensor, generator: torch.Generator | None) -> Tensor:
    """Returns noise for observations."""
    generator = generator_or_private(generator, obs.device)
    if isinstance(shape[0], torch.SymInt):  # of any number of rows, `randn` takes no generator
        empty = torch.empty(shape, device=obs.device, dtype=obs.dtype)
        return empty.normal_(generator=generator)
    return torch.randn(shape, generator=generator, device=obs.device, dtype=obs.dtype)


def _autocast() -> bool:
    return any(map(torch.is_autocast_enabled, DEVICES))


knows(FlowMapActor)
_REFERENCE = {name: getattr(FlowMapActor, name) for name in SAMPLING}
# What of the config parameters are made for.
_FLOW_MAP = {"sigma_data", "times", "embedding", "action_statistics"}
