"""Policies: a flow map, its critic and their target networks as one SB3 policy."""

import copy
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from gtp_datasets.spaces import is_whole, members_of, observation_facts
from gtp_policy import (
    GTPConfig,
    GTPLearner,
    ObservationLayout,
    read_metadata,
    restore_,
)
from gtp_policy.chunks import ChunkState
from gtp_policy.critic import ValueNetwork
from gtp_policy.errors import CheckpointError, DataError, UnsupportedSpaceError
from gtp_policy.export import PolicySource, Surroundings
from gtp_policy.functional import check_actions
from gtp_policy.spaces import real_array
from gtp_sb3 import _codec, _files
from gtp_sb3._choices import check_candidates, check_policy_choices, merge_networks
from gtp_sb3._spaces import (
    ObservationEncoder,
    action_scaler_of,
    check_for_extractor,
    is_vector,
    layout_of,
    parts_of,
    with_axes,
)
from gtp_sb3._states import whole_or_nothing
from gtp_sb3.networks import Actor, Critic

OptimizerFactory = Callable[[str, nn.Module], torch.optim.Optimizer]
Observation = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]


class GTPPolicy(BasePolicy):
    """A generative trajectory policy with its critic, as SB3 knows policies.

    Vectors (a Box, or a Dict of Boxes, with SB3's default extractors) go to the core's networks
    directly; images, discrete parts and custom extractors through SB3's preprocessing and the
    extractor, of which actor and critic have a copy each. An ``encoder`` in the config takes the
    place of both: a policy with it loads in the core alone.

    **deterministic=True** starts the sampler from a noise that is a function of the observation:
    equal calls give equal actions, an observation gets the same one in any batch up to rounding
    (`gtp_policy.GTPLearner.act`), and over observations they are distributed as sampled ones are.
    Where the critic prefers it, they are where those of 16 noises lie densest, the mode, see
    `gtp_policy.acting.mode_share`; ``eval_candidates`` of the config decides for it, and
    ``deterministic_choice`` what is made of so many. **deterministic=False** draws one sample with
    new noise. ``candidates=n`` makes either the one of n that the critic values most.

    Args:
        observation_space: Observation space.
        action_space: A bounded Box.
        lr_schedule: Learning rate as a function of the remaining progress, as in SB3; None leaves
            learning rates to ``config``.
        net_arch: Widths of the hidden layers, a list or ``dict(pi=[...], qf=[...])``. Default: the
            config's.
        activation_fn: Fixed to nn.Mish; anything else is refused.
        features_extractor_class: Features extractor.
        features_extractor_kwargs: Its keyword arguments.
        normalize_images: Whether to divide images by 255.
        optimizer_class: Optimiser.
        optimizer_kwargs: Its keyword arguments, without the learning rate.
        n_critics: Number of Q networks. Default: the config's.
        share_features_extractor: Not supported; False.
        config: Every choice of the method.
        network: Backbone of the actor instead of the default MLP; copied.
        candidates: Actions to draw per observation, of which the critic chooses one. Default: one
            sample, or for a deterministic action as above. Can be changed at any time:
            ``model.policy.candidates = 4``.
        layout: Order in which the parts of an observation are joined. Default: of the space.

    Attributes:
        learner: The core's learner, which holds the networks and their optimisers.
        actor: Flow map that is trained, with its ``optimizer``, as SB3 calls an actor; the core's
            network is its ``core``, and ``learner.actor``.
        actor_target: Its target network, which acts.
        critic: Q networks, with their ``optimizer``, as SB3 calls a critic; None for behaviour
            cloning.
        critic_target: Their target networks.
        value: Value network of the expectile baseline, or None.

    Raises:
        UnsupportedSpaceError: If the action space is no bounded Box, a Dict observation meets a
            policy for arrays, or the layout leaves out a part that a features extractor needs.
        ValueError: If a choice is made twice, or not offered, or ``candidates`` are so many that an
            action would take seconds.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from gtp_sb3 import GTPPolicy
        >>> policy = GTPPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,)), net_arch=[64, 64])
        >>> action, _ = policy.predict(np.zeros(3), deterministic=True)
        >>> action.shape, bool(abs(action) <= 2)
        ((1,), True)
    """

    learner: GTPLearner
    actor: Actor
    actor_target: Actor
    critic: Critic | None
    critic_target: Critic | None
    value: ValueNetwork | None
    _network: nn.Module | None
    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] | None = None,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int | None = None,
        share_features_extractor: bool = False,
        *,
        config: GTPConfig | None = None,
        network: nn.Module | None = None,
        candidates: int | None = None,
        layout: ObservationLayout | None = None,
    ) -> None:
        extractor_class = features_extractor_class or self.default_extractor
        check_policy_choices(activation_fn, share_features_extractor)
        if isinstance(observation_space, spaces.Dict) and extractor_class is FlattenExtractor:
            raise UnsupportedSpaceError(
                f"The observation is a Dict: got {type(self).__name__}, expected MultiInputPolicy "
                "or an extractor for its parts."
            )
        super().__init__(
            observation_space,
            action_space,
            extractor_class,
            dict(features_extractor_kwargs or {}),
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=dict(optimizer_kwargs or {}),
            squash_output=True,
        )
        self.net_arch, self.n_critics = net_arch, n_critics
        self.scaler = action_scaler_of(action_space)
        self.layout = layout or layout_of(observation_space)
        self.is_vector = is_vector(observation_space, extractor_class, normalize_images)
        self._noise: torch.Generator | None = None
        # Whether a state brought scales of observations and actions: no dataset sets them then.
        self.scales_are_given = False
        # A template, no part of the policy: not registered.
        self.__dict__["_network"] = network
        self._build(merge_networks(config or GTPConfig(), net_arch, n_critics), lr_schedule)
        self.candidates = candidates

    @property
    def candidates(self) -> int | None:
        """Actions to draw per observation, of which the critic chooses one.

        Raises:
            ValueError: If it is set to so many that an action would take seconds.
        """
        return self._candidates

    @candidates.setter
    def candidates(self, candidates: int | None) -> None:
        if candidates is not None:
            check_candidates(candidates, self.learner.actor.config.steps)
        self._candidates = candidates

    def _build(self, config: GTPConfig, lr_schedule: Schedule | None) -> None:
        actor = config.actor
        parts = parts_of(self.observation_space)
        images = tuple(key for key, part in parts.items() if is_image_space(part))
        config = config.fit_to_observations(self.layout, images)
        learner = GTPLearner.build(
            self.layout.obs_dim * actor.history,
            self.scaler.action_dim * actor.chunk,
            config,
            network=self.make_network(),
            encoder=None if config.encoder else self.make_encoder(actor.history),
            optimizer=self.optimizer_factory(config, lr_schedule),
        )
        # Observations come in float32, whatever torch's default type is.
        if learner.dtype != torch.float32:
            learner.to(dtype=torch.float32)
        # Not registered: its networks are the policy's own children, by SB3's names.
        self.__dict__["learner"] = learner
        self.actor = Actor(self, learner.actor)
        self.actor_target = Actor(self, learner.target_actor)
        critic, target = learner.critic, learner.target_critic
        self.critic = None if critic is None else Critic(self, critic)
        self.critic_target = None if target is None else Critic(self, target)
        self.value = learner.value
        if self.value is not None and isinstance(self.value.encoder, ObservationEncoder):
            # By SB3's name, too; not registered, or the parameters would have two names.
            self.value.__dict__["features_extractor"] = self.value.encoder.extractor
        for name, optimizer in learner.optimizers.items():
            getattr(self, name).optimizer = optimizer
        self.train(False)

    def make_network(self) -> nn.Module | None:
        """Returns a new copy of the actor's own backbone, if it has one."""
        return copy.deepcopy(self._network)

    def make_encoder(self, history: int = 1) -> ObservationEncoder | None:
        """Returns SB3's preprocessing and a new extractor as one module; None for vectors.

        Args:
            history: m, observations in one.

        Returns:
            The module.

        Raises:
            UnsupportedSpaceError: If the layout leaves out a part of the observation.
        """
        if self.is_vector:
            return None
        check_for_extractor(self.observation_space, self.layout)
        extractor = self.make_features_extractor()
        return ObservationEncoder(
            self.observation_space, self.layout, extractor, self.normalize_images, history
        )

    def optimizer_factory(
        self, config: GTPConfig, lr_schedule: Schedule | None
    ) -> OptimizerFactory | None:
        """Returns what makes optimisers of SB3's choices; None leaves them to the core.

        Args:
            config: Every choice of the method.
            lr_schedule: Learning rate by remaining progress, or None.

        Returns:
            A function of the part's name and module.

        Raises:
            ValueError: If the config schedules a learning rate for an optimiser of another class.
        """
        cls, kwargs = self.optimizer_class, dict(self.optimizer_kwargs)
        if lr_schedule is None and cls is torch.optim.Adam and not kwargs:
            return None
        rates = config.learner
        asked_for = "lr_schedule" in rates.model_fields_set
        if lr_schedule is None and asked_for and rates.lr_schedule != "constant":
            raise ValueError(
                f"`learner.lr_schedule` of the config goes with its own optimiser: got "
                f"{rates.lr_schedule!r} and an `optimizer_class` or `optimizer_kwargs`, expected "
                "one of them. Pass learning_rate= as a schedule of SB3."
            )
        if cls in (torch.optim.Adam, torch.optim.AdamW):
            if not kwargs.keys() & {"foreach", "differentiable", "capturable"}:
                kwargs.setdefault("fused", True)  # as the core's

        def make(name: str, module: nn.Module) -> torch.optim.Optimizer:
            rate = rates.initial_actor_lr if name == "actor" else rates.initial_critic_lr
            if lr_schedule is not None:
                rate = lr_schedule(1)
            make_optimizer = cast(Any, cls)  # the base class requires no learning rate
            optimizer: torch.optim.Optimizer = make_optimizer(
                module.parameters(), lr=rate, **kwargs
            )
            return optimizer

        return make

    def train(self, mode: bool = True) -> Self:
        """Sets training mode; the target networks, which act, stay in evaluation mode.

        Args:
            mode: Whether to train.

        Returns:
            The policy itself.
        """
        super().train(mode)
        for target in (self.actor_target, self.critic_target):
            if target is not None:
                target.eval()
        return self

    def set_training_mode(self, mode: bool) -> None:
        """Does what `train` does; SB3's name for it.

        Args:
            mode: Whether to train.
        """
        self.train(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's arguments
        """Returns parameters and buffers alone, as policies of SB3 do.

        For what choices of the flow map they are made stands in ``_metadata`` of the result, which
        copies and ``torch.save`` keep; `load_state_dict` checks it, and warns where it is missing.

        Args:
            *args: As for any module of torch.
            **kwargs: Likewise.

        Returns:
            The state.
        """
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        made_for = {}
        for name in self._extra_states():
            made_for[name] = bytes(state.pop(prefix + name).tolist()).decode()
        state._metadata[prefix[:-1]]["made_for"] = made_for
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - torch's types
        """Takes over parameters and buffers by their values, all of them or nothing.

        The actor's scales are among them: a dataset that comes later does not set them anew.

        Args:
            state_dict: What `state_dict` returned.
            strict: Whether the names must match exactly.
            assign: Not used: the optimisers hold the parameters that are there.

        Returns:
            The missing and unexpected keys.

        Raises:
            StateMismatchError: If the state belongs to other networks or to another flow map;
                nothing has been changed then.
        """
        with whole_or_nothing(self, self):
            return super().load_state_dict(state_dict, strict)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,  # noqa: ANN401 - torch's arguments
    ) -> None:
        # Earlier versions had the core's networks themselves in these places.
        for name in ("actor", "actor_target", "critic", "critic_target"):
            before, now = f"{prefix}{name}.", f"{prefix}{name}.core."
            for key in [k for k in state_dict if k.startswith(before) and not k.startswith(now)]:
                state_dict[now + key.removeprefix(before)] = state_dict.pop(key)
        told, extra = local_metadata.get("made_for", {}), self._extra_states()
        of_actors = any(key.startswith(f"{prefix}actor") for key in state_dict)
        if of_actors and not told and not any(prefix + name in state_dict for name in extra):
            # Scales of a flow map are no parameters: others act otherwise with the same ones.
            warnings.warn(
                "The state does not say which flow map it is of: got no metadata, as of a dict "
                "made anew of a state's items, expected what state_dict returned. A state of this "
                "model, or of one with the same scales, is right; with another model's the policy "
                "acts wrongly. Keep what state_dict returned, or a copy.deepcopy of it, or its "
                "attribute `_metadata`.",
                stacklevel=6,
            )
        for name, own in extra.items():
            # As the flow map itself reads it; states of earlier versions hold it themselves.
            text = told.get(name, told.get(name.replace(".core.", ".")))
            given = own if text is None else torch.tensor(list(text.encode()), dtype=torch.uint8)
            state_dict.setdefault(prefix + name, given)
        self.scales_are_given |= of_actors
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _extra_states(self) -> dict[str, Tensor]:
        return {
            f"{name}.core._extra_state": getattr(self, name).core.get_extra_state()
            for name in ("actor", "actor_target")
        }

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Acts on tensors, of episodes that begin with them.

        Args:
            obs: Observations as SB3's ``obs_to_tensor`` makes them: a tensor or a dict of tensors.
            deterministic: Whether to start from noises that are a function of the observation.

        Returns:
            Actions in [-1, 1], shape (B, A).
        """
        return self._predict(obs, deterministic)

    @property
    def has_memory(self) -> bool:
        """Whether `predict` needs its ``state``: of policies with a history or chunks."""
        config = self.actor.config
        return config.history > 1 or config.chunk > 1

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self._play(observation, None, None, deterministic)[0]

    def rows(self, observation: PyTorchObs) -> Tensor:
        """Returns observations as the core's networks take them.

        Args:
            observation: As SB3's ``obs_to_tensor`` makes them.

        Returns:
            Shape (B, O), on the CPU: there, few rows are faster than on a device.

        Raises:
            DataError: If they hold NaN or infinity.
        """
        flat = self.layout.flatten(with_axes(observation, self.layout)).cpu()
        finite = flat.isfinite().all(1)
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise DataError(
                f"The observation is not finite: got NaN or infinity in row {row} of {len(flat)}, "
                "expected finite numbers. Look at the environment; VecCheckNan finds the step."
            )
        return flat

    def _play(
        self,
        observation: PyTorchObs,
        state: tuple[npt.NDArray[Any], ...] | None,
        episode_start: npt.NDArray[Any] | None,
        deterministic: bool,
    ) -> tuple[Tensor, tuple[npt.NDArray[Any], ...] | None]:
        """Returns actions of one step in [-1, 1], and the state after it."""
        flat = self.rows(observation)
        generator = None if deterministic else self.noise_source(flat.device)
        if not self.has_memory:
            action = self.learner.act(
                flat,
                candidates=self.candidates,
                deterministic=deterministic,
                generator=generator,
            )
            return action, state
        player = self.learner.player(
            candidates=self.candidates, deterministic=deterministic, generator=generator
        )
        starts = None if episode_start is None else np.asarray(episode_start).reshape(-1)
        return player.step(flat, cast("ChunkState | None", state), starts)

    def predict(
        self,
        observation: Observation,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Acts on one observation or a batch of them.

        Changes nothing but the policy's own stream of noise: no training flag, no global generator.

        Args:
            observation: Observation of the environment, or a batch.
            state: What the step before returned: of a policy with chunks or a history, what is
                still to be played and what was seen, by environment. None where all episodes begin,
                as in a call alone. Other policies have no memory and return it as it came.
            episode_start: Which episodes begin with this observation; what is in the state of them
                is forgotten. Policies without memory do not use it.
            deterministic: Whether to start from a noise that is a function of the observation, so
                that equal calls give equal actions; see `GTPPolicy`. False draws new noise.

        Returns:
            Actions in the units of the environment, always inside its Box, and the state.

        Raises:
            DataError: If the observation holds NaN or infinity, or masked or complex numbers, or is
                so large that the action is not finite.
            ValueError: If it does not fit the space, or is the pair that ``gymnasium`` returns.

        Example:
            >>> import numpy as np
            >>> from gymnasium.spaces import Box
            >>> from gtp_sb3 import MlpPolicy
            >>> policy = MlpPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,)), net_arch=[64, 64])
            >>> policy.predict(np.zeros((5, 3)))[0].shape
            (5, 1)
        """
        if isinstance(observation, tuple) and len(observation) == 2:
            raise ValueError(
                "The observation is a tuple: got what `env.reset()` of gymnasium returns, expected "
                "an array or a dict. Unpack it: `obs, info = env.reset()`; the VecEnv of SB3 "
                "returns the observation alone."
            )
        if isinstance(observation, dict):
            observation = {key: _real(f"obs[{key!r}]", part) for key, part in observation.items()}
        else:
            observation = _real("obs", observation)
        tensors, vectorized = self.obs_to_tensor(observation)
        with torch.no_grad():
            played, state = self._play(tensors, state, episode_start, deterministic)
            played = played.cpu()
            check_actions(played)
            unit = played.numpy()
        action = members_of(self.action_space, self.scaler.to_box(unit))
        return (action if vectorized else action[0, ...]), state  # an array, of shape () too

    def policy_source(self) -> PolicySource:
        """Returns what `gtp_policy.export` writes into a file: this policy as it is evaluated.

        Returns:
            The target networks, the spaces, and the number of candidates of a deterministic action.
            Images have their channels first, as SB3 shows them to a policy.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_sb3 import MlpPolicy
            >>> MlpPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,))).policy_source().action_shape
            (1,)
        """
        source = PolicySource.of_learner(self.learner)
        return (
            self.surroundings()
            .around(source, self.learner)
            ._replace(
                layout=self.layout,
                action_scaler=self.scaler,
                observations=observation_facts(self.observation_space),
            )
        )

    def surroundings(self) -> Surroundings:
        """Returns what a checkpoint says of the policy beyond its learner.

        Returns:
            What `policy_source` says of spaces, candidates and normalised observations.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_sb3 import MlpPolicy
            >>> MlpPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,))).surroundings().action_shape
            (1,)
        """
        return Surroundings(
            action_shape=self.action_space.shape,
            whole_actions=is_whole(self.action_space),
            candidates=self.candidates,
        )

    def noise_source(self, device: torch.device) -> torch.Generator:
        """Returns the policy's own stream of noise.

        Args:
            device: Where the noise is needed.

        Returns:
            The generator; `reseed` starts it anew.
        """
        if self._noise is None or self._noise.device != device:
            self._noise = self.learner.stream("predict", device)
        return self._noise

    def reseed(self, seed: int) -> None:
        """Starts every stream of random numbers anew, of acting and of training.

        Args:
            seed: The seed, at least 0.
        """
        self.learner.config = self.learner.config.replace(seed=seed)
        self._noise = None

    def take_spaces(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        """Takes over spaces that describe the same observations and actions in more detail.

        Args:
            observation_space: Observation space.
            action_space: Action space.

        Raises:
            ValueError: If observations would have to be preprocessed in another way.
            UnsupportedSpaceError: If a features extractor has not seen a part of the observation.
        """
        extractor = self.features_extractor_class
        if self.is_vector != is_vector(observation_space, extractor, self.normalize_images):
            raise ValueError(
                f"The observations are of another kind: got {observation_space}, expected one like "
                f"{self.observation_space}. Build the model with the environment."
            )
        if isinstance(self.learner.actor.encoder, ObservationEncoder):
            check_for_extractor(observation_space, self.layout)
        self.observation_space, self.action_space = observation_space, action_space

    def unscale_action(self, scaled_action: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Takes actions from [-1, 1] to the units of the environment.

        Args:
            scaled_action: Actions in [-1, 1].

        Returns:
            Actions inside the Box.
        """
        box = cast(spaces.Box, self.action_space)
        if box.dtype.kind == "f":
            inside: npt.NDArray[Any] = np.clip(
                super().unscale_action(scaled_action), box.low, box.high
            )
            return inside.astype(box.dtype, copy=False)
        unit = np.asarray(scaled_action, np.float32).reshape(-1, self.scaler.action_dim)
        return members_of(box, self.scaler.to_box(unit)).reshape(np.shape(scaled_action))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        # The config of the learner says all that `net_arch` and `n_critics` said.
        return {
            **super()._get_constructor_parameters(),
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
            "candidates": self.candidates,
            **({} if self._network is None else {"network": self._network}),
        }

    def save(self, path: str | pathlib.Path) -> None:
        """Saves the policy alone, optimisers included, as one zip file without any pickle.

        Args:
            path: Name of the file; ``.zip`` is added where it has no ending.

        Raises:
            CheckpointError: If it cannot be written.
        """
        kwargs = self._get_constructor_parameters()
        attributes = {k: kwargs.pop(k) for k in ("observation_space", "action_space")}
        attributes |= {"policy_class": type(self), "policy_kwargs": kwargs}
        encoded, _ = _files.encode_attributes(attributes)
        surroundings = self.surroundings()
        _files.write(path, self.learner, self.scaler, self.layout, encoded, surroundings)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Loads what `save` wrote, or the policy of a whole model.

        Args:
            path: Name of the file, with or without ``.zip``.
            device: Where to put it.
            custom_objects: ``policy_kwargs`` and the like, instead of what the file says.

        Returns:
            The policy.

        Raises:
            CheckpointError: If the file is missing, damaged or foreign, or lacks something that no
                file can hold.
            StateMismatchError: If ``custom_objects`` do not fit the file.
        """
        replaced = custom_objects or {}
        with _files.located(path) as file:
            info, encoded = _files.read(file)
            known = ("observation_space", "action_space", "policy_kwargs")
            own = {k: v for k, v in encoded.items() if k in known}
            replaced = _files.with_candidates(replaced, own)
            attributes = _files.decode_attributes(file, info, own, replaced) | replaced
            missing = [k for k in known if k not in attributes]
            if missing:
                raise CheckpointError(
                    f"Checkpoint {file} is no policy of SB3: got no {missing}, expected a file of "
                    "GTP.save. Load a file of the core with GTP.load(path, env=...)."
                )
            space, kwargs = attributes["observation_space"], attributes["policy_kwargs"]
            _files.check_spaces(file, info, space, attributes["action_space"])
            with _files.built_from(file):
                cls.check_size(file, space, kwargs)
                policy = cls(
                    space,
                    attributes["action_space"],
                    **kwargs | {"config": info.config, "layout": info.layout},
                ).to(get_device(device))
                restore_(policy.learner, file)
            _files.check_surroundings(file, info, policy.learner)
        return policy

    @classmethod
    def check_size(
        cls, path: pathlib.Path, observation_space: spaces.Space[Any], kwargs: dict[str, Any]
    ) -> None:
        """Raises unless a file holds what its extractor and its networks would need.

        Args:
            path: The file.
            observation_space: Observation space.
            kwargs: Arguments of the policy.

        Raises:
            CheckpointError: If it does not.
        """
        extractor_class = kwargs.get("features_extractor_class") or cls.default_extractor
        if is_vector(observation_space, extractor_class, kwargs.get("normalize_images", True)):
            return  # nothing but the core's networks, which were counted when the file was read
        if read_metadata(path).config.encoder is not None:
            return  # so was the core's encoder
        with torch.device("meta"):  # where nothing takes memory
            extractor = extractor_class(
                observation_space, **kwargs.get("features_extractor_kwargs") or {}
            )
        read_metadata(path, encoder=extractor)


class MlpPolicy(GTPPolicy):
    """The policy for vectors: a `GTPPolicy` without an extractor.

    Other single arrays and discrete observations are flattened and one-hot encoded, as SB3 does.
    Takes the arguments of `GTPPolicy`.

    Example:
        >>> from gymnasium.spaces import Box
        >>> from gtp_sb3 import MlpPolicy
        >>> MlpPolicy(Box(-1, 1, (3,)), Box(-1, 1, (2,))).layout
        ObservationLayout((3,))
    """


class CnnPolicy(GTPPolicy):
    """The policy for images: a `GTPPolicy` with SB3's NatureCNN in front of each network.

    Takes the arguments of `GTPPolicy`.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from gtp_sb3 import CnnPolicy
        >>> image = Box(0, 255, (1, 36, 36), np.uint8)
        >>> CnnPolicy(image, Box(-1, 1, (2,))).actor.features_extractor.features_dim
        512
    """

    default_extractor = NatureCNN


class MultiInputPolicy(GTPPolicy):
    """The policy for Dict observations: a `GTPPolicy` with SB3's CombinedExtractor.

    A Dict of vectors needs no extractor: its parts are joined, goals last. Takes the arguments of
    `GTPPolicy`.

    Example:
        >>> from gymnasium.spaces import Box, Dict
        >>> from gtp_sb3 import MultiInputPolicy
        >>> space = Dict({key: Box(-1, 1, (2,)) for key in ("achieved_goal", "desired_goal")})
        >>> MultiInputPolicy(space, Box(-1, 1, (2,))).layout
        ObservationLayout({'achieved_goal': (2,), 'desired_goal': (2,)})
    """

    default_extractor = CombinedExtractor


_codec.CLASSES |= {
    "gtp_sb3.GTPPolicy": GTPPolicy,
    "gtp_sb3.MlpPolicy": MlpPolicy,
    "gtp_sb3.CnnPolicy": CnnPolicy,
    "gtp_sb3.MultiInputPolicy": MultiInputPolicy,
}


def _real(name: str, part: Any) -> Any:  # noqa: ANN401 - an array of any kind
    """Returns an observation without a mask: SB3 would act on what lies under it."""
    return part if isinstance(part, Tensor) else real_array(name, part)
