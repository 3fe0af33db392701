"""GTP as an off-policy algorithm of Stable-Baselines3, online and offline."""

import math
import pathlib
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, TypeVar, cast

import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    Schedule,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import get_system_info
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from gtp_policy import (
    CheckpointInfo,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    StopSignal,
    Transitions,
    UpdateMetrics,
    restore_,
)
from gtp_policy.errors import (
    DataError,
    TrainingWarning,
    UnsupportedSpaceError,
)
from gtp_policy.export import PolicySource
from gtp_policy.functional import check_kind
from gtp_sb3 import _files, _normalize, _replay, _saving, _sources
from gtp_sb3._choices import (
    check_learning_rate,
    check_policy_kwargs,
    merge_learner,
    pick,
    reopen_curriculum,
)
from gtp_sb3._data import Dataset, Frame
from gtp_sb3._loop import OfflineLoop
from gtp_sb3._offline import OfflineTraining
from gtp_sb3._spaces import action_scaler_of, check_env, layout_of
from gtp_sb3._states import whole_or_nothing
from gtp_sb3.policies import CnnPolicy, GTPPolicy, MlpPolicy, MultiInputPolicy, Observation

SelfGTP = TypeVar("SelfGTP", bound="GTP")
_BOUNDS = (
    "Where the environment says none, wrap it: gymnasium.wrappers.TransformAction(env, "
    "lambda a: a, Box(low, high)); ActionScaler.of_data takes such limits from data."
)


class GTP(OfflineLoop):
    """Generative Trajectory Policies as an algorithm of Stable-Baselines3.

    With a ``dataset`` it learns offline: one timestep is one update (or ``gradient_steps`` of
    them), and the environment is neither stepped nor reset; it may be None. Without one it is an
    off-policy algorithm like any other, with replay buffer, exploration and ``train_freq``.
    `set_dataset` changes from one to the other.

    **deterministic=True** of `predict` starts from a noise that is a function of the observation:
    equal calls give equal actions, an observation gets the same one in any batch up to rounding,
    and over observations they are distributed as sampled ones are. Where the critic prefers it,
    they are the mode of 16 such actions, see `gtp_policy.acting.mode_share`; ``eval_candidates`` in
    the config decides for it. ``deterministic=False`` draws one sample;
    ``policy_kwargs=dict(candidates=n)`` makes either the one of n that the critic values most.
    Online, where the critic sees what its choices lead to, choose that, with n = 16 say.

    Arguments of SB3 keep SB3's meaning. What belongs to the method stands in ``gtp_config``. A
    choice that can be made in both places (``learning_rate``, ``tau``, ``gamma``, ``seed``,
    ``net_arch``, ``n_critics``) may be made in one of them. Where ``gtp_config`` does not say
    ``total_updates``, the first `learn` sets it from its ``total_timesteps``: learning rates fall,
    and a curriculum unfolds, over that run; each later one, offline or online, makes it longer by
    its own where it leads beyond what an earlier one left.

    Args:
        policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, or a `GTPPolicy` class.
        env: Environment, vectorised or not, or its id. None is enough for a dataset that knows
            the bounds of its actions.
        learning_rate: Learning rate of all parts, or its schedule. Default: the config's.
        buffer_size: Size of the replay buffer; made when it is needed.
        learning_starts: Timesteps of random actions before learning online. A policy that was
            trained on a dataset acts itself from the start.
        batch_size: Transitions per update.
        tau: Rate at which the target networks follow, ``ema_rate`` of the config; the critic's has
            a separate rate if ``critic_ema_rate`` is given. Default: by the length of the run, as
            ``model.tau`` says once it is known. The next update goes by what that is set to.
        gamma: Discount factor. Default: the config's, the one of an ``OfflineDataset``, or 0.99.
        train_freq: How often to learn, online.
        gradient_steps: Updates per round online, per timestep offline; -1 means as many as steps
            were made, and one offline.
        action_noise: Noise added to the actions of a run online.
        replay_buffer_class: Class of the replay buffer, such as ``HerReplayBuffer``.
        replay_buffer_kwargs: Its keyword arguments.
        optimize_memory_usage: Whether the replay buffer keeps each observation once.
        n_steps: Rewards per TD target; above 1 online only.
        dataset: What to learn from: an ``OfflineDataset``, a dict of arrays, a ``MinariDataset``
            or the id of a local one, the path of a D4RL file, or a ``ReplayBuffer`` of SB3. Without
            rewards it can be cloned (``GTPConfig(critic=None)``).
            Actions in the units of the environment (a ``ReplayBuffer`` holds them scaled).
        gtp_config: Every choice of the method. Default: all defaults.
        stats_window_size: Episodes over which the statistics of a run online are taken.
        tensorboard_log: Folder of TensorBoard's logs.
        policy_kwargs: Arguments of the policy, see `GTPPolicy`.
        verbose: 0 for silence, 1 for logs, 2 for more.
        seed: Seed of everything: as SB3 does, also of the global generators, from which a replay
            buffer is sampled. Without one, the config's; without that, one that the operating
            system draws. ``model.seed`` says which; it leaves the global generators alone.
        device: Where to compute.
        _init_setup_model: Whether to build the networks at once.
        out_of_bounds: Whether actions of a dataset outside the Box raise or are clipped to it.

    Attributes:
        learner: The core's learner.
        dataset: What the model learns from offline, or None.

    Raises:
        UnsupportedSpaceError: If the action space is no bounded Box; an AssertionError too, as SB3
            raises. Also if the dataset leaves out parts that a features extractor needs.
        DataError: If the dataset is bad or does not fit, or has no rewards for the critic.
        ValueError: If a choice is made twice, or not offered.

    References:
        | Offline Reinforcement Learning with Generative Trajectory Policies (Feng et al., 2025)
        | https://arxiv.org/abs/2510.11499

    Example:
        >>> import numpy as np
        >>> from gtp_policy import OfflineDataset
        >>> from gtp_sb3 import GTP
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((8, 3)), action=np.zeros((8, 1)), reward=np.ones(8),
        ...     next_obs=np.zeros((8, 3)), terminated=np.zeros(8), truncated=np.zeros(8),
        ...     low=[-2.0], high=[2.0])
        >>> model = GTP("MlpPolicy", None, dataset=dataset, batch_size=4, device="cpu",
        ...             policy_kwargs=dict(net_arch=[16]))
        >>> model.learn(total_timesteps=2).learner.updates
        2
        >>> model.predict(np.zeros(3), deterministic=True)[0].shape
        (1,)
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: GTPPolicy

    def __init__(
        self,
        policy: str | type[GTPPolicy],
        env: GymEnv | str | None = None,
        learning_rate: float | Schedule | None = None,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float | None = None,
        gamma: float | None = None,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        dataset: object = None,
        gtp_config: GTPConfig | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        out_of_bounds: Literal["error", "clip"] = "error",
    ) -> None:
        if env is not None:
            env = maybe_make_env(env, verbose)
            action_scaler_of(env.action_space, advice=_BOUNDS)
        config = GTPConfig() if gtp_config is None else gtp_config
        check_kind("gtp_config", config, GTPConfig)
        check_learning_rate(config, learning_rate)
        merged = merge_learner(config, tau, seed)
        chosen = config.learner.gamma
        gamma = pick("gamma", gamma, "learner.gamma", chosen, chosen is not None)
        if _sources.named(dataset) and env is None:
            dataset = _sources.open_named(
                cast(str, dataset), 0.99 if gamma is None else gamma, None
            )
        if isinstance(dataset, OfflineDataset) and (dataset.history > 1 or dataset.chunk > 1):
            merged = merged.fit_to_steps(dataset.history, dataset.chunk)
        if gamma is None:
            gamma = dataset.gamma if isinstance(dataset, OfflineDataset) else 0.99
        merged = merged.with_gamma(gamma)
        # Before super(), which sets `replay_buffer`.
        self._replay_buffer: ReplayBuffer | None = None
        self._offline = OfflineTraining(config)
        super().__init__(
            policy,
            cast(GymEnv, env),  # None is welcome in the end
            cast(float, learning_rate),  # None leaves it to the config
            buffer_size,
            learning_starts,
            batch_size,
            merged.learner.actor_rate,
            gamma,
            train_freq,
            gradient_steps,
            action_noise=action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=merged.learner.seed,
            sde_support=False,
            support_multi_env=True,
        )
        self.gtp_config = merged
        self.out_of_bounds = out_of_bounds
        self._seeds_globally = seed is not None
        self._spaces_are_derived = False
        self._metrics: UpdateMetrics | None = None
        self._clock = [0.0, 0]  # seconds and updates since the last log
        # Of a run that learns by episodes: how many there were before it, after how many its length
        # was set, and the least that it is to be.
        self._episodes_before, self._followed, self._least_length = 0, 0, 0
        if env is None and dataset is not None:
            self.observation_space, self.action_space = _sources.spaces_of(dataset)
            self.n_envs, self._spaces_are_derived = 1, True
        if _init_setup_model:
            self._layout = _sources.layout_for(dataset, self._known_space())
            self._setup_model()
            if dataset is not None:
                self.set_dataset(dataset)
            else:
                self._make_replay_buffer()  # as SB3 does, so that its errors are raised here

    @classmethod
    def from_actor(
        cls: type[SelfGTP],
        source: "GTP | _files.Place",
        env: GymEnv | str | None = None,
        *,
        dataset: object = None,
        gtp_config: GTPConfig | None = None,
        **kwargs: Any,  # noqa: ANN401 - arguments of the constructor
    ) -> SelfGTP:
        """Goes on from a trained actor with other choices: from a clone to reinforcement learning.

        The new model acts as the old one does, bit for bit, until its first update. Its policy
        class, ``policy_kwargs``, layout, scales and discount factor are the old one's; critic,
        optimisers and counters are new, as `gtp_policy.GTPLearner.from_actor` says.

        Args:
            source: The model to go on from, or the file that `save` wrote.
            env: As for the constructor; None keeps the spaces.
            dataset: As for the constructor.
            gtp_config: Every choice of what follows; default all defaults.
            **kwargs: Other arguments of the constructor.

        Returns:
            The model.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign.
            StateMismatchError: If ``gtp_config`` chooses another actor.
            DataError: If the dataset is bad or does not fit, or has no rewards for the critic.
            ValueError: If the environment has other spaces.

        Example:
            >>> import numpy as np
            >>> from gtp_policy import GTPConfig, OfflineDataset
            >>> from gtp_sb3 import GTP
            >>> logs = dict(obs=np.zeros((8, 3)), action=np.zeros((8, 1)), terminated=np.zeros(8),
            ...             truncated=np.arange(8) == 7, low=[-2.0], high=[2.0])
            >>> clone = GTP("MlpPolicy", None, dataset=OfflineDataset.from_arrays(**logs),
            ...             gtp_config=GTPConfig(critic=None), policy_kwargs=dict(net_arch=[16]))
            >>> scored = OfflineDataset.from_arrays(reward=np.ones(8), **logs)
            >>> model = GTP.from_actor(clone, dataset=scored).learn(2)
            >>> model.critic is None, model.learner.updates
            (False, 2)
        """
        clone = source if isinstance(source, GTP) else cls.load(source)
        config = gtp_config or GTPConfig()
        gamma = clone.gamma if config.learner.gamma is None else None
        own: dict[str, Any] = {
            "policy_kwargs": _present_kwargs(clone),
            "device": clone.device,
            "gamma": dataset.gamma if isinstance(dataset, OfflineDataset) else gamma,
            "out_of_bounds": clone.out_of_bounds,
        }
        model = cls(
            type(clone.policy),
            env,
            gtp_config=clone.learner.continued(config),
            _init_setup_model=False,
            **own | kwargs,
        )
        if model.env is None:
            model.observation_space, model.action_space = (
                clone.policy.observation_space,
                clone.policy.action_space,
            )
            model.n_envs, model._spaces_are_derived = 1, True
        else:
            check_env(model.env, clone.policy.layout, clone.policy.action_space)
        model._layout = clone.policy.layout
        model._setup_model()
        model.learner.take_actor_(clone.learner)
        model._offline.scales_are_fixed = True
        if dataset is not None:
            model.set_dataset(dataset)
        return model

    def _known_space(self) -> Any:  # noqa: ANN401 - a space
        if not hasattr(self, "observation_space"):
            raise ValueError(
                "The spaces are unknown: got neither `env` nor `dataset`, expected one of them."
            )
        return self.observation_space

    def _setup_model(self) -> None:
        kwargs, seed, buffer = self.policy_kwargs, self.seed, self._replay_buffer
        check_policy_kwargs(kwargs, self.policy_class)
        self.policy_kwargs = {**kwargs, "config": self.gtp_config, "layout": self._layout}
        # A seed that was not given to SB3 stays out of the global generators.
        self.seed = seed if self._seeds_globally else None
        # SB3 makes a replay buffer where there is none; ours is made when it is needed.
        self._replay_buffer = cast(ReplayBuffer, object())
        try:
            super()._setup_model()
        finally:
            self.__dict__["policy_kwargs"] = kwargs  # the policy is there: it is set no more
            self.__dict__["seed"], self._replay_buffer = seed, buffer  # no new streams
        self._create_aliases()

    def _setup_lr_schedule(self) -> None:
        if self.learning_rate is None:
            self.lr_schedule = cast(Schedule, None)  # the policy leaves its optimisers to the core
        else:
            super()._setup_lr_schedule()

    def _create_aliases(self) -> None:
        self.actor, self.actor_target = self.policy.actor, self.policy.actor_target
        self.critic, self.critic_target = self.policy.critic, self.policy.critic_target
        self.value = self.policy.value

    @property
    def learner(self) -> GTPLearner:
        """The core's learner: networks, optimisers, counter and choices."""
        return self.policy.learner

    def policy_source(self) -> PolicySource:
        """Returns what `gtp_policy.export` writes into a file: the policy as it is evaluated.

        Returns:
            That of the policy, `GTPPolicy.policy_source`.
        """
        return self.policy.policy_source()

    @property
    def dataset(self) -> Dataset | None:
        """What the model learns from offline, or None."""
        return self._offline.dataset

    @property
    def replay_buffer(self) -> ReplayBuffer | None:
        """The replay buffer; None as long as the model learns from a dataset.

        Raises:
            AttributeError: If it was deleted; SB3's way to have none of it in memory.
        """
        if not hasattr(self, "_replay_buffer"):
            raise AttributeError(
                "The replay buffer was deleted: got none, expected one. Call load_replay_buffer(), "
                "or set model.replay_buffer to one, or to None for a new one."
            )
        if self._replay_buffer is None and self.dataset is None and hasattr(self, "policy"):
            self._make_replay_buffer()
        return self._replay_buffer

    @replay_buffer.setter
    def replay_buffer(self, buffer: ReplayBuffer | None) -> None:
        self._replay_buffer = buffer

    @replay_buffer.deleter
    def replay_buffer(self) -> None:
        del self._replay_buffer

    def _make_replay_buffer(self) -> None:
        kind = cast(spaces.Box, self.action_space).dtype
        if kind.kind != "f":
            raise UnsupportedSpaceError(
                f"A replay buffer of SB3 cannot hold these actions: got a Box of {kind}, in which "
                "it would keep numbers between -1 and 1, expected floating point. Offer a float "
                "Box in a wrapper that rounds, or learn from a dataset alone."
            )
        buffer_class = cast("type[ReplayBuffer]", self.replay_buffer_class)
        kwargs = dict(self.replay_buffer_kwargs)
        if issubclass(buffer_class, HerReplayBuffer):
            kwargs["env"] = self._need_env("HerReplayBuffer")
        self._replay_buffer = buffer_class(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **kwargs,
        )

    def _need_env(self, what: str) -> VecEnv:
        if self.env is None:
            raise ValueError(
                f"{what} needs an environment: got env=None, expected one. Pass env= or call "
                "set_env(); to learn offline, call set_dataset()."
            )
        return self.env

    def set_dataset(self, dataset: object, *, keep_data: bool = False) -> None:
        """Says what `learn` learns from: a dataset, or with None the environment.

        The first dataset of a model that was never trained also gives it its scales, unless the
        config says otherwise: ``sigma_data`` from the actions and, for vectors, the normalisation
        of observations. Both then stay as they are, online too.

        An environment in ``VecNormalize`` must not change its statistics while the model learns
        offline. Untouched ones are taken from the dataset and frozen (``training = False``); frozen
        ones are used as they are; others raise.

        Args:
            dataset: As for the constructor; None to learn online.
            keep_data: With None: whether the transitions of the present dataset become the
                beginning of the replay buffer, the newest if not all fit; added to what is in it,
                with a warning, and not once more. Otherwise training continues on what is
                collected alone.

        Raises:
            DataError: If the dataset is bad, does not fit the model, or meets ``n_steps`` above 1,
                a replay buffer that changes its samples or statistics that move.
            ValueError: If ``keep_data`` is requested with nothing to keep.

        Example:
            >>> import gymnasium, numpy as np
            >>> from gtp_sb3 import GTP
            >>> data = dict(obs=np.zeros((8, 3)), next_obs=np.zeros((8, 3)), reward=np.ones(8),
            ...             action=np.zeros((8, 1)), terminated=np.zeros(8), truncated=np.zeros(8))
            >>> model = GTP("MlpPolicy", gymnasium.make("Pendulum-v1"), dataset=data,
            ...             buffer_size=100, policy_kwargs=dict(net_arch=[16]))
            >>> model.set_dataset(None, keep_data=True)
            >>> model.replay_buffer.size()
            8
        """
        if dataset is None:
            self._go_online(keep_data)
            return
        if keep_data:
            raise ValueError(
                "`keep_data` goes with set_dataset(None): got a dataset, expected None. It says "
                "what becomes of the data when the model goes online."
            )
        _replay.check_plain(self.replay_buffer_class, self.n_steps)
        frame = Frame(
            self.observation_space,
            self.action_space,
            self._layout,
            self.gamma,
            self.device,
            self.out_of_bounds,
        )
        self._attach(_sources.read(dataset, frame))

    def _attach(self, dataset: Dataset) -> None:
        if dataset.gamma != self.gamma:
            raise DataError(
                f"`gamma` was changed since the dataset was read: got {self.gamma}, expected "
                f"{dataset.gamma}, which its discounts are made with. Call set_dataset(data) again "
                "with the data that is to be read; an OfflineDataset has to be made with the new "
                "one."
            )
        wrapper = self.get_vec_normalize_env()
        with _normalize.kept_if_refused(wrapper):
            self._offline.attach(dataset, self.policy, wrapper, self.verbose)

    def _go_online(self, keep_data: bool) -> None:
        if keep_data:
            if self.dataset is None:
                raise ValueError("`keep_data` has nothing to keep: got no dataset, expected one.")
            if getattr(self, "_replay_buffer", None) is None:
                self._make_replay_buffer()
            _replay.fill_(cast(ReplayBuffer, self._replay_buffer), self.dataset)
        self._offline.detach()

    def learn(
        self: SelfGTP,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = -1,
        tb_log_name: str = "GTP",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfGTP:
        """Learns: from the dataset if there is one, from the environment if not.

        Args:
            total_timesteps: Offline: timesteps of ``gradient_steps`` updates each. Online: steps
                of the environment.
            callback: Callbacks of SB3, called after every timestep. Offline, their local variables
                ``rewards``, ``dones`` and ``infos`` are empty, and ``new_obs`` is None.
            log_interval: Offline: timesteps between two logs. Online: episodes. -1 stands for 1000
                timesteps or 4 episodes; None for no logs.
            tb_log_name: Name of the run in TensorBoard.
            reset_num_timesteps: Whether to count timesteps from 0; False goes on with an earlier
                run.
            progress_bar: Whether to draw a progress bar.

        Returns:
            The model.

        Raises:
            KeyboardInterrupt: After Ctrl-C, between two updates: the model can be saved.
            NonFiniteError: If losses are not finite when they are logged.
            ValueError: If there is neither dataset nor environment, or online no critic to learn,
                or a policy with chunks or a history; or if there is no whole number of timesteps.
        """
        total_timesteps = _whole(total_timesteps)
        self._offline.look_at_wrapper_(self.learner, self.get_vec_normalize_env())
        if self.dataset is None:
            self._need_env("Learning without a dataset")
            if self.policy.has_memory:
                actor = self.learner.actor.config
                raise ValueError(
                    "Chunks and histories are learned offline: got no dataset and "
                    f"history={actor.history}, chunk={actor.chunk}, expected a dataset or 1. Call "
                    "set_dataset(data)."
                )
            if self.learner.critic is None:
                raise ValueError(
                    "Learning online needs a critic: got critic=None (behaviour cloning), expected "
                    "a QEnsembleConfig in gtp_config."
                )
            before = 0 if reset_num_timesteps else self.num_timesteps
            updates = self._updates_online(total_timesteps, before)
            is_known = not self._learns_by_episodes()
            longer = self._offline.set_horizon_(self.learner, updates, is_known)
            self._show_tau()
            self._episodes_before = 0 if reset_num_timesteps else self._episode_num
            self._followed = 0
            self._least_length = 0 if longer else self.learner.config.total_updates
            return super().learn(
                total_timesteps,
                callback,
                4 if log_interval == -1 else cast(int, log_interval),
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )
        updates = total_timesteps * self._updates_per_timestep
        _replay.check_plain(self.replay_buffer_class, self.n_steps)
        self._attach(self.dataset)  # the environment may be another one since
        self._offline.set_horizon_(self.learner, updates)
        self._show_tau()
        self._learn_offline(
            total_timesteps,
            callback,
            1000 if log_interval == -1 else log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )
        return self

    def _updates_online(self, total_timesteps: int, before: int) -> int:
        """Returns about how many updates a run online will do, after some timesteps before it.

        By episodes it is not known before there was one: `_follow_episodes_` says it then.
        """
        train_freq = cast(TrainFreq, self.train_freq)
        if train_freq.frequency < 1:
            raise ValueError(
                f"`train_freq` is out of range: got {train_freq.frequency}, expected at least one "
                f"{train_freq.unit.value}."
            )
        # Any number: SB3 compares all timesteps that are counted with it.
        wait = min(total_timesteps, max(self.learning_starts - before, 0))
        steps = math.floor(total_timesteps - wait)
        if self.gradient_steps < 0 or self._learns_by_episodes():
            return steps
        return steps * self.gradient_steps // (train_freq.frequency * self.n_envs)

    def _learns_by_episodes(self) -> bool:
        """Returns whether updates online are so many per episode, however long it is."""
        unit = cast(TrainFreq, self.train_freq).unit
        return unit is TrainFrequencyUnit.EPISODE and self.gradient_steps >= 0

    def _follow_episodes_(self) -> None:
        """Sets the length of a run that learns by episodes, once after each round of them.

        What is left of it is taken to be as what was. Only where the length is not the config's,
        and never less than it was to be.
        """
        steps = self.num_timesteps - self._num_timesteps_at_start
        episodes = self._episode_num - self._episodes_before
        if episodes == self._followed or self._offline.horizon != "first run" or not steps:
            return
        self._followed = episodes
        left = max(self._total_timesteps - self.num_timesteps, 0)
        rounds = math.ceil(left * episodes / (steps * cast(TrainFreq, self.train_freq).frequency))
        wanted = self.learner.updates + self.gradient_steps * (1 + rounds)
        self.learner.set_total_updates_(max(wanted, self._least_length))
        self._show_tau()

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """Does some updates; called by `learn`.

        Ctrl-C and SIGTERM wait for the end of an update, so that the model can be saved behind it;
        a second one does not. As everywhere, only in the main thread.

        Args:
            gradient_steps: How many.
            batch_size: Transitions per update.
        """
        learner = self.learner
        if not learner.actor.training:  # walking through all modules costs more than this check
            self.policy.set_training_mode(True)
        if self.learning_rate is not None or self.lr_schedule is not None:
            self._use_learning_rate()
        if self.dataset is None and self._learns_by_episodes():
            self._follow_episodes_()
        start, left = time.perf_counter(), gradient_steps
        try:
            while left > 0:
                with StopSignal() as stop:
                    self._metrics, done = self._update(left, batch_size)
                    left -= done
                stop.pass_on()  # to a handler that may return
        finally:
            done = gradient_steps - left
            self._clock[0] += time.perf_counter() - start
            self._clock[1] += done
            self._n_updates = learner.updates
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            if self.dataset is not None:
                self._offline.updates += done

    def _update(self, most: int, batch_size: int) -> tuple[UpdateMetrics, int]:
        """Does one update, or as many as are one launch, and returns how many."""
        shown = self._offline.shown
        if not isinstance(shown, OfflineDataset):  # drawn from by itself
            return self.learner.update(self._minibatch(batch_size)), 1
        n = 1 if most == 1 else min(self.learner.updates_per_launch(batch_size), most)
        with warnings.catch_warnings():
            # That some lie behind the end was said of all of them, when their number was known.
            warnings.filterwarnings("ignore", r"\d+ of \d+ updates learn", TrainingWarning)
            return self.learner.update_from(shown, n, batch_size=batch_size), n

    def _use_learning_rate(self) -> None:
        """Gives every optimiser the learning rate of SB3's schedule.

        Raises:
            ValueError: If the rates are the core's, which it sets before every update.
        """
        if self.learner.learning_rates or self.lr_schedule is None:
            name = "learning_rate" if self.lr_schedule is None else "lr_schedule"
            raise ValueError(
                f"`{name}` was set on a model whose learning rates are those of gtp_config: got "
                f"{getattr(self, name)!r}, expected None. Build the model with learning_rate=..., "
                "a number or a schedule; or save it and call GTP.load(path, learning_rate=...)."
            )
        self._update_learning_rate(list(self.learner.optimizers.values()))

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - of any attribute
        # Choices of the learner, too. At once: the rate in use follows the length of the run until
        # one is set, be it the same.
        if name in ("gamma", "tau") and "policy" in self.__dict__:
            field = "ema_rate" if name == "tau" else name
            self.learner.config = self.learner.config.replace(**{field: float(value)})
        if name in ("gtp_config", "policy_kwargs") and "policy" in self.__dict__:
            raise ValueError(
                f"`{name}` was set on a model that is built of it: got {value!s:.60}, expected it "
                "as it is. Build a new model; choices of training are set by "
                "`model.learner.config = model.learner.config.replace(...)`."
            )
        if name == "seed" and value is not None and "policy" in self.__dict__:
            self.policy.reseed(int(value))
        super().__setattr__(name, value)
        if name == "learning_rate" and self.__dict__.get("lr_schedule") is not None:
            self._setup_lr_schedule()

    def _show_tau(self) -> None:
        """Makes the attribute ``tau`` say at which rate the actor's target network follows."""
        self.__dict__["tau"] = self.learner.config.actor_rate

    def _minibatch(self, batch_size: int) -> Transitions:
        if self._offline.shown is not None:
            return self._offline.shown.sample(batch_size, generator=self.learner.stream("batch"))
        buffer = cast(ReplayBuffer, self.replay_buffer)
        return _replay.sample(buffer, batch_size, self._vec_normalize_env, self.gamma, self._layout)

    def dump_logs(self) -> None:
        """Writes the logs; the only place where metrics are copied from the device.

        Raises:
            NonFiniteError: If a metric of the latest update is NaN or infinite.
        """
        if self._metrics is not None:
            start = time.perf_counter()
            for name, value in self._metrics.to_floats().items():
                self.logger.record(f"train/{name}", value)
            seconds, updates = self._clock
            seconds += time.perf_counter() - start  # for what the device had still to do
            self.logger.record("time/ms_per_update", 1000 * seconds / max(updates, 1))
            rate = self.learner.optimizers["actor"].param_groups[0]["lr"]
            self.logger.record("train/learning_rate", float(rate))
            self._metrics, self._clock = None, [0.0, 0]
        super().dump_logs()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if self._offline.updates:
            learning_starts = 0  # a trained policy has better to offer than random actions
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def predict(
        self,
        observation: Observation,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Acts on one observation or a batch of them, with the target actor.

        Args:
            observation: Observation of the environment, or a batch.
            state: What the step before returned, for a policy with chunks or a history; None where
                all episodes begin. See `GTPPolicy.predict`.
            episode_start: Which episodes begin with this observation.
            deterministic: Whether to start from a noise that is a function of the observation, so
                that equal calls give equal actions; see `GTPPolicy`. False draws new noise.

        Returns:
            Actions in the units of the environment, always inside its Box, and the state.

        Raises:
            DataError: If the observation holds NaN or infinity.
            ValueError: If it does not fit the space, or is the pair that ``gymnasium`` returns.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seeds the model's own streams, and as SB3 does Python, numpy, torch and the environment.

        Args:
            seed: The seed; None does nothing.
        """
        if seed is None:
            return
        super().set_random_seed(seed)
        self.seed, self._seeds_globally = seed, True  # the policy's streams, too

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Sets the environment.

        A model that took its spaces from a dataset takes over those of its first environment, if
        observations have the same shapes and actions the same bounds.

        Args:
            env: Environment, vectorised or not.
            force_reset: Whether to reset it before the next training.

        Raises:
            ValueError: If its spaces are others.
            UnsupportedSpaceError: If a features extractor has not seen a part of its observations.
        """
        if self._spaces_are_derived:
            env = self._wrap_env(env, self.verbose)
            check_env(env, self._layout, self.policy.action_space)
            self.policy.take_spaces(env.observation_space, env.action_space)
            self.observation_space, self.action_space = env.observation_space, env.action_space
            self.n_envs, self._spaces_are_derived = env.num_envs, False
        super().set_env(env, force_reset)

    def save(
        self,
        path: _files.Place,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Saves the model as one zip file without any pickle: a checkpoint of the core.

        It holds networks, target networks, optimisers, counters and SB3's attributes; neither
        dataset nor replay buffer nor environment. Custom functions and classes are not in it: pass
        them to `load`.

        Args:
            path: Name of the file (``.zip`` is added where it has no ending; a file of that name is
                replaced at once), or a binary stream.
            exclude: Names of attributes to leave out.
            include: Names of attributes not to leave out.

        Raises:
            CheckpointError: If it cannot be written, or an attribute is one that `load` refuses.
        """
        included = [name for name in include or () if hasattr(self, name)]
        left_out = {*self._excluded_save_params(), *(exclude or ())} - set(include or ())
        self._offline.scales_are_fixed |= self.policy.scales_are_given
        own = self.__dict__ | self._offline.attributes()
        attributes = {name: value for name, value in own.items() if name not in left_out}
        attributes |= {name: getattr(self, name) for name in included}
        if "policy_kwargs" in attributes:
            attributes["policy_kwargs"] = _present_kwargs(self)
        encoded = _saving.encode(type(self), attributes, included)
        policy = self.policy
        surroundings = policy.surroundings()
        _files.write(path, self.learner, policy.scaler, policy.layout, encoded, surroundings)

    @classmethod
    def load(
        cls: type[SelfGTP],
        path: _files.Place,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,  # noqa: ANN401 - attributes of any type
    ) -> SelfGTP:
        """Loads a model that `save` wrote, or a checkpoint of the core or of another host.

        Nothing in the file is executed. The dataset is not in it: call `set_dataset` to go on
        learning offline; the run then continues exactly where it was, on the same machine bit for
        bit. Nor is the folder of TensorBoard's logs: a file does not say where the next run writes.

        Args:
            path: Name of the file, with or without ``.zip``, or a binary stream.
            env: Environment; None is enough to act.
            device: Where to compute.
            custom_objects: Attributes instead of what the file says, and what no file can hold:
                schedules that are functions, ``policy_kwargs`` with custom classes.
            print_system_info: Whether to print the versions here and where it was saved.
            force_reset: Whether the environment is reset before training, as in SB3. False goes on
                with the observation that the file holds, of an environment that still stands there;
                a file holds none of more than some thousand numbers.
            **kwargs: Attributes to set, such as ``learning_rate`` or ``dataset``.

        Returns:
            The model.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign (a file of SB3's own
                included), contradicts itself, or lacks something that no file can hold.
            ValueError: If the environment has other spaces, or ``policy_kwargs`` differ.
        """
        if "gtp_config" in kwargs:
            raise ValueError(
                "`gtp_config` belongs to the weights: got one to load with, expected the file's. "
                "Build a new model, and take over what fits with "
                "set_parameters(path, exact_match=False)."
            )
        with _files.located(path) as file:
            info, attributes = _saving.read(file, cls, custom_objects or {}, kwargs)
            if print_system_info:
                print("== CURRENT SYSTEM INFO ==")
                get_system_info()
                print("== SAVED MODEL SYSTEM INFO ==")
                print(info.metadata.get("system_info", "not known"))
            if env is not None:
                env = cls._wrap_env(env, attributes.get("verbose", 0))
            attributes = _saving.complete(file, info, attributes, env)
            attributes |= _saving.standing(attributes, None if force_reset else env)
            of_dict = isinstance(attributes["observation_space"], spaces.Dict)
            policy = attributes.get("policy_class", MultiInputPolicy if of_dict else MlpPolicy)
            custom = custom_objects or {}
            dataset = kwargs.pop("dataset", None)
            # Of the learner, too.
            gamma, tau, seed = (
                kwargs.pop(name, custom.get(name)) for name in ("gamma", "tau", "seed")
            )
            with _files.built_from(file):
                policy.check_size(
                    file, attributes["observation_space"], attributes.get("policy_kwargs") or {}
                )
                model = cls(policy, env, device=device, _init_setup_model=False)
                model._take_over(file, info, attributes | kwargs)
        if gamma is not None:
            model.gamma = float(gamma)
        if tau is not None:
            model.tau = float(tau)
        if seed is not None:
            model.set_random_seed(seed)
        if dataset is not None:
            model.set_dataset(dataset)
        return model

    def _take_over(
        self, path: pathlib.Path, info: CheckpointInfo, attributes: dict[str, Any]
    ) -> None:
        """Makes a model that was not set up the one of a checkpoint."""
        self._offline.take_attributes_(attributes)
        self.__dict__.update(attributes)
        self.gtp_config = info.config
        if self._offline.horizon is None:
            self.gtp_config = reopen_curriculum(info.config)
        self._layout = info.layout or layout_of(self.observation_space)
        self._setup_model()
        restore_(self.learner, path)
        _files.check_surroundings(path, info, self.learner)
        # Whatever the attributes of a file say beside it.
        self._n_updates = self.learner.updates
        if self.learner.config.gamma not in (None, self.gamma):
            self.gamma = float(self.gamma)  # of the learner, too
        self._show_tau()

    def set_parameters(
        self,
        load_path_or_dict: Any,  # noqa: ANN401 - a place or a dict
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Takes over parameters, in place.

        Args:
            load_path_or_dict: What `get_parameters` returned, or a file that `save` wrote.
            exact_match: Whether every part and every parameter must be given.
            device: Not used; parameters come to where the model is.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign.
            ValueError: If a name is unknown, or one is missing with ``exact_match``.
            StateMismatchError: If the parameters do not fit; nothing has been changed then.
        """
        given = load_path_or_dict
        if not isinstance(given, Mapping):
            given = _saving.read_parameters(given, self.policy, self.lr_schedule)
        needed = set(self._get_torch_save_params()[0])
        unknown = sorted(set(given) - needed)
        missing = sorted(needed - set(given)) if exact_match else []
        if unknown or missing:
            raise ValueError(
                f"The names do not match: got {sorted(given)}, expected {sorted(needed)}; unknown "
                f"{unknown}, missing {missing}. Pass exact_match=False to leave some out."
            )
        targets = {name: recursive_getattr(self, name) for name in given}
        # Of a compiled policy, the policy itself.
        targets = {name: getattr(target, "_orig_mod", target) for name, target in targets.items()}
        with whole_or_nothing(self.policy, *targets.values()):
            for name, target in targets.items():
                if isinstance(target, torch.optim.Optimizer):
                    target.load_state_dict(given[name])
                else:
                    target.load_state_dict(given[name], strict=exact_match)
        self._offline.scales_are_fixed = True

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_saving.EXCLUDED]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", *(f"{n}.optimizer" for n in self.learner.optimizers)], []


def _whole(timesteps: Any) -> int:  # noqa: ANN401 - whatever was given
    """Returns a number of timesteps; 1e5 is one, as for SB3's own algorithms."""
    try:
        if (number := int(timesteps)) == timesteps:
            return number
    except (OverflowError, TypeError, ValueError):
        pass
    raise ValueError(
        f"`total_timesteps` is no number of timesteps: got {timesteps!r}, expected a whole one."
    )


def _present_kwargs(model: GTP) -> dict[str, Any]:
    """Returns the policy's arguments with what may be changed at any time as it is now."""
    kwargs = dict(model.policy_kwargs)
    if model.policy.candidates != kwargs.get("candidates"):
        kwargs["candidates"] = model.policy.candidates
    return kwargs
