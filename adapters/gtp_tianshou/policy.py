"""The policy that Tianshou's collectors and trainers see."""

import copy
import functools
import json
import warnings
from collections.abc import Mapping
from typing import Any, Literal, Self, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from tianshou.algorithm.algorithm_base import Policy
from tianshou.data import Batch, to_numpy
from tianshou.data.types import ActBatchProtocol, ObsBatchProtocol
from torch import Tensor

from gtp_datasets.spaces import is_whole, layout_of, members_of, observation_facts
from gtp_policy import (
    ActionScaler,
    FlowMapActor,
    GTPLearner,
    GTPLearnerConfig,
    ObservationLayout,
    QEnsemble,
    act,
)
from gtp_policy.acting import ModeChoice, chosen_by
from gtp_policy.chunks import ChunkPlayer
from gtp_policy.errors import (
    FOREIGN_STATE_ERRORS,
    NonFiniteError,
    ShapeError,
    StateMismatchError,
    UnsupportedSpaceError,
)
from gtp_policy.export import PolicySource
from gtp_policy.records import what_is_wrong
from gtp_tianshou._spaces import action_scaler_of, check_layout, flatten, plain

# What of a learner's config says how its policy acts.
_ACTING = {"eval_candidates", "choice", "deterministic_choice", "playback"}


class GTPPolicy(Policy):
    r"""A flow map as a Tianshou policy, for a bounded Box of actions and Box or Dict observations.

    ``forward`` emits actions in [-1, 1] and builds no graph; ``map_action``, which the collector
    calls, takes them to the environment's Box. Once a `GTP` algorithm has been made with it, the
    policy acts with the target networks and as the config of its learner says at that time.
    ``policy.state_dict()`` holds both, and alone can be deployed.

    Acting is deterministic if ``deterministic_eval`` and the policy is not within a training step:
    an action then starts from a noise that is a function of the observation. Equal calls give equal
    actions, an observation gets the same one in any batch up to rounding
    (`gtp_policy.GTPLearner.act`), and over observations they are distributed as samples are. Where
    the critic prefers it, they are the mode of 16 such actions, see
    `gtp_policy.acting.mode_share`; ``eval_candidates`` of the learner's config decides for it.
    Never zero noise, which can end between two modes. ``deterministic_eval``, ``steps`` and
    ``candidates`` may be changed at any time.

    Args:
        actor: The flow map.
        action_space: A Box with finite bounds, of any rank and type.
        observation_space: A Box of any rank or a Dict of Boxes; default: vectors of the actor's
            length.
        critic: Chooses among several candidates.
        layout: Which parts of a Dict observation in which order; default: all, a goal observation
            as observation, achieved_goal, desired_goal, other keys in alphabetical order.
        deterministic_eval: Whether evaluation is deterministic, as above.
        steps: K, jumps per action; default the actor's.
        candidates: Actions drawn per observation, of which the critic's favourite is taken (BCQ's
            ``forward_sampled_times``). None: one sample, or for a
            deterministic action as above.
        action_scaling: Whether [-1, 1] is mapped to the Box. False is possible where the Box is
            [-1, 1] itself.
        action_bound_method: Anything but ``"tanh"``: the actions are in [-1, 1] already.
        seed: Seed of the noise of stochastic actions.

    Raises:
        UnsupportedSpaceError: If a space does not fit: discrete or unbounded actions, for example.
        ShapeError: If the actor or the critic has other dimensions than the spaces.
        ValueError: If ``action_bound_method`` is ``"tanh"``, or ``candidates`` need a critic.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_tianshou import GTPPolicy
        >>> policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
        >>> action = policy.compute_action(np.zeros(3))
        >>> action.shape, policy.action_space.contains(action)
        ((1,), True)
    """

    actor: FlowMapActor
    critic: QEnsemble | None

    def __init__(
        self,
        *,
        actor: FlowMapActor,
        action_space: gym.Space[Any],
        observation_space: gym.Space[Any] | None = None,
        critic: QEnsemble | None = None,
        layout: ObservationLayout | None = None,
        deterministic_eval: bool = True,
        steps: int | None = None,
        candidates: int | None = None,
        action_scaling: bool = True,
        action_bound_method: Literal["clip", "tanh"] | None = "clip",
        seed: int = 0,
    ) -> None:
        scaler = action_scaler_of(action_space)
        if observation_space is None:
            layout = layout or ObservationLayout((actor.obs_dim // actor.config.history,))
        elif layout is None:
            layout = layout_of(observation_space)
        else:
            check_layout(layout, observation_space)
        _check_options(action_space, scaler, action_scaling, action_bound_method)
        _check_dimensions(actor, critic, layout, scaler)
        if (candidates or 1) > 1 and critic is None:
            raise ValueError(
                f"A choice among candidates needs a critic: got candidates={candidates} and "
                "critic=None, expected a QEnsemble."
            )
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
        )
        self.actor, self.critic = actor, critic
        self.layout, self.action_scaler = layout, scaler
        self.deterministic_eval = deterministic_eval
        self.steps, self.candidates = steps, candidates
        # `act_with` sets the learner, in a tuple: it is no module of the policy's.
        self._own_choices, self._learner = GTPLearnerConfig(), cast("tuple[GTPLearner, ...]", ())
        self.seed = seed
        for module in (actor, critic):
            if module is not None:
                module.eval()

    @property
    def seed(self) -> int:
        """Seed of the noise of stochastic actions; to set it starts the stream anew."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, torch.Generator] = {}

    @torch.no_grad()
    def forward(
        self,
        batch: ObsBatchProtocol,
        state: Any = None,  # noqa: ANN401 - Tianshou's type of a hidden state
        *,
        generator: torch.Generator | None = None,
        **kwargs: Any,  # noqa: ANN401 - as in every Tianshou policy
    ) -> ActBatchProtocol:
        """Acts for a batch of observations.

        Args:
            batch: With ``obs``: array or tensor (B, ...), or a Batch of these by key.
            state: The hidden state, as the step before returned it: of a policy with chunks or a
                history, an array with a row per environment of what is still to be played and was
                seen; None, or a row of zeros, where an episode begins. The collector carries it and
                clears it at resets. Other policies hand it back as it is.
            generator: Source of the noise of stochastic actions, on the actor's device; default the
                policy's own stream, which starts at its ``seed``.
            **kwargs: Ignored, as in Tianshou's own policies.

        Returns:
            A Batch with ``act`` in [-1, 1], a tensor, shape (B, ...) as the space has it, and
            ``state``.

        Raises:
            DataError: If an observation is not finite.
            ShapeError: If an observation has the wrong shape or a key is missing.
        """
        like = self.actor
        flat = flatten(self.layout, batch.obs)
        # An observation on the CPU stays there: few rows are faster there than on a device.
        obs = (flat if isinstance(flat, Tensor) else torch.tensor(flat, device="cpu")).to(
            like.dtype
        )
        deterministic = self.deterministic_eval and not self.is_within_training_step
        candidates, choice = chosen_by(
            self._choices, self.actor, self.critic, self.candidates, deterministic
        )
        if generator is None and not deterministic:
            generator = self._generator(obs.device)
        act_now = functools.partial(
            act,
            self.actor,
            self.critic,
            steps=self.steps,
            candidates=candidates,
            choice=choice,
            deterministic=deterministic,
            generator=generator,
        )
        config = self.actor.config
        if config.history > 1 or config.chunk > 1:
            player = ChunkPlayer(
                act_now, chunk=config.chunk, history=config.history, playback=self._choices.playback
            )
            action, state = self._play(player, obs, state)
        else:
            action = act_now(obs)
        shape = cast("gym.spaces.Box", self.action_space).shape
        return cast("ActBatchProtocol", Batch(act=action.reshape(-1, *shape), state=state))

    def _play(self, player: ChunkPlayer, obs: Tensor, state: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        """Returns actions of one step, and the hidden state after it."""
        before = None
        if state is not None:
            before = player.from_rows(to_numpy(state), self.layout.obs_dim)
        action, after = player.step(obs, before)
        return action, after.to_rows()

    def compute_action(
        self,
        obs: Any,  # noqa: ANN401 - an observation of any space
        info: dict[str, Any] | None = None,
        state: Any = None,  # noqa: ANN401 - as in forward
        *,
        generator: torch.Generator | None = None,
    ) -> npt.NDArray[Any]:
        """Acts for one observation, in the units of the environment.

        A policy with chunks or a history takes it for the first of an episode: it has no state to
        give back here. `forward` has, and so has `GTPLearner.player`.

        Args:
            obs: One observation, as ``env.step`` returns it: an array, or a dict of arrays.
            info: Unused.
            state: Unused.
            generator: As for `forward`. With one per thread, or a deterministic policy, threads may
                share the policy.

        Returns:
            The action, of the action space's shape and dtype, inside the Box.

        Raises:
            DataError: If the observation is not finite.
            ShapeError: If the observation has the wrong shape or a key is missing.
        """
        one = plain(obs)
        obs_batch = {k: v[None] for k, v in one.items()} if isinstance(one, Mapping) else one[None]
        batch = cast("ObsBatchProtocol", Batch(obs=obs_batch))
        return self.map_action(self.forward(batch, generator=generator).act[0])

    def map_action(self, act: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - array, tensor or list
        """Takes actions from [-1, 1] to the environment's Box, in the Box's own dtype.

        Numbers of a Box of integers are rounded to the nearest one.

        Unlike Tianshou's own, the result never leaves the Box by a rounding error.

        Args:
            act: One action or more, shape (..., action's); what lies outside [-1, 1] is clipped.

        Returns:
            The same shape, inside the Box.

        Raises:
            NonFiniteError: If a number is not finite.
            ShapeError: If the shape does not end in the action's.
        """
        unit, shape = self._rows(act)
        if not np.isfinite(unit).all():
            raise NonFiniteError(
                f"`act` is not finite: got {unit[~np.isfinite(unit)][0]}, expected actions in "
                "[-1, 1]. Look at the parameters: training has diverged."
            )
        inside = self.action_scaler.to_box(unit.clip(-1.0, 1.0))
        return members_of(self.action_space, inside).reshape(shape)

    def map_action_inverse(self, act: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - as above
        """Takes actions from the environment's Box to [-1, 1], where a buffer keeps them.

        Args:
            act: One action or more, shape (..., action's), in the units of the environment.

        Returns:
            The same shape; in [-1, 1] where the action lies in the Box.

        Raises:
            ShapeError: If the shape does not end in the action's.
        """
        box, shape = self._rows(act)
        return self.action_scaler.to_unit(box).reshape(shape)

    def train(self, mode: bool = True) -> Self:
        """Sets the policy's flag alone: actor and critic stay in evaluation mode, as they act.

        Args:
            mode: Whether to train.

        Returns:
            The policy itself.
        """
        self.training = mode
        return self

    def act_with(self, learner: GTPLearner) -> None:
        """Makes the policy act with a learner's target networks, and as its config says.

        Args:
            learner: The learner; called by `GTP` with its own.
        """
        self.actor, self.critic = learner.target_actor, learner.target_critic
        self._learner = (learner,)

    @property
    def _choices(self) -> GTPLearnerConfig:
        """How the policy acts: as its learner's config has it now, or as its state had it."""
        return self._learner[0].config if self._learner else self._own_choices

    def policy_source(self) -> PolicySource:
        """Returns what `gtp_policy.export` writes into a file: this policy as it is evaluated.

        Returns:
            The networks that act, the spaces, and the number of candidates of a deterministic
            action.

        Example:
            >>> from gymnasium.spaces import Box
            >>> from gtp_policy import FlowMapActor
            >>> from gtp_tianshou import GTPPolicy
            >>> policy = GTPPolicy(actor=FlowMapActor(3, 1), action_space=Box(-2.0, 2.0, (1,)))
            >>> policy.policy_source().action_scaler
            ActionScaler(low=[-2.0], high=[2.0])
        """
        candidates, choice = chosen_by(
            self._choices, self.actor, self.critic, self.candidates, True
        )
        return PolicySource(
            self.actor,
            self.critic,
            layout=self.layout,
            action_scaler=self.action_scaler,
            action_shape=self.action_space.shape,
            whole_actions=is_whole(self.action_space),
            observations=observation_facts(self.observation_space),
            steps=self.steps,
            candidates=candidates,
            choice=choice,
            playback=self._choices.playback,
            normalized_by=self.actor.normalized_by,
        )

    def _rows(
        self,
        action: Any,  # noqa: ANN401 - as above
    ) -> tuple[npt.NDArray[Any], tuple[int, ...]]:
        """Returns actions as rows of A numbers, as exact as the Box's, and their shape before."""
        space = cast("gym.spaces.Box", self.action_space)
        # In [-1, 1], integers say nothing, and float16 little.
        kind = np.result_type(space.dtype, np.float32)
        array = np.asarray(self._action_to_numpy(action), dtype=kind)
        if array.shape[array.ndim - len(space.shape) :] != space.shape:
            raise ShapeError(
                f"`act` has the wrong shape: got {array.shape}, expected (..., "
                f"{', '.join(map(str, space.shape))})."
            )
        return array.reshape(-1, self.action_scaler.action_dim), array.shape

    def _generator(self, device: torch.device) -> torch.Generator:
        if str(device) not in self._generators:
            self._generators[str(device)] = torch.Generator(device).manual_seed(int(self.seed))
        return self._generators[str(device)]

    def get_extra_state(self) -> Tensor:
        """Returns how the policy acts, as a learner's config says it.

        Returns:
            JSON as numbers of ASCII, on the CPU, float32: a tensor as all of ``state_dict``, which
            can be averaged with that of another policy that acts alike.
        """
        text = self._choices.model_dump_json(include=_ACTING)
        return torch.tensor(list(text.encode("ascii")), dtype=torch.float32, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Takes over how the policy acts, unless a learner says that; by ``load_state_dict``.

        Args:
            state: What `get_extra_state` returned where the parameters were saved.

        Raises:
            StateMismatchError: If it is something else.
        """
        try:
            told = json.loads(bytes(state.double().round().to(torch.uint8).tolist()))
            choices = GTPLearnerConfig.model_validate(told)
            choices.playback.check(self.actor.config.chunk)
        except (AttributeError, RecursionError, TypeError, ValueError) as error:
            raise StateMismatchError(
                f"The state does not say how a policy acts: got {what_is_wrong(error)}, expected "
                "what policy.state_dict() returned."
            ) from error
        own = self._choices
        differing = [n for n in sorted(_ACTING) if getattr(own, n) != getattr(choices, n)]
        if self._learner and differing:
            warnings.warn(
                "The state is of a policy that acts otherwise: got "
                f"{', '.join(f'{n}={getattr(choices, n)}' for n in differing)}, and the config of "
                f"this one's learner has {', '.join(f'{getattr(own, n)}' for n in differing)}, "
                "which stays.",
                stacklevel=2,
            )
        by_critic = not isinstance(choices.deterministic_choice, ModeChoice)
        if self.critic is None and by_critic and choices.eval_candidates != 1:
            warnings.warn(
                "The state is of a policy whose deterministic actions its critic chooses "
                f"({choices.deterministic_choice.kind} of eval_candidates="
                f"{choices.eval_candidates}): got a policy without one, which takes the first "
                "candidate. Pass critic= to GTPPolicy to act as it did.",
                stacklevel=2,
            )
        self._own_choices = choices

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:  # noqa: ANN401 - torch's own return type has no public name
        """Takes over what ``state_dict`` returned, all of it or nothing.

        Args:
            state_dict: The state; that of a policy with a critic also fits one without.
            strict: Whether the names must match exactly.
            assign: Whether to take over the tensors themselves instead of their values.

        Returns:
            The missing and unexpected keys.

        Raises:
            StateMismatchError: If the state belongs to a policy with other networks or another flow
                map; nothing has been changed then.
        """
        try:
            with warnings.catch_warnings():  # said below, once
                warnings.simplefilter("ignore")
                # To a copy first: torch finds what does not fit after it has written the rest.
                super(GTPPolicy, copy.deepcopy(self)).load_state_dict(state_dict, strict, assign)
        except FOREIGN_STATE_ERRORS as error:
            if isinstance(error, StateMismatchError):
                raise
            raise StateMismatchError(
                f"The state does not fit the policy: got {type(error).__name__} ({error}), "
                "expected what state_dict of a policy with the same networks returned."
            ) from error
        return super().load_state_dict(state_dict, strict, assign)

    def __getstate__(self) -> dict[str, Any]:
        # Copied or pickled alone, a policy takes no learner along: an algorithm gives it its own.
        return {**self.__dict__, "_own_choices": self._choices, "_learner": ()}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        said = f"{prefix}_extra_state"  # of earlier versions says nothing of it
        missing_keys[:] = [k for k in missing_keys if k != said]
        if self.critic is None:  # an actor alone may take itself out of a state that has both
            foreign = f"{prefix}critic."
            unexpected_keys[:] = [k for k in unexpected_keys if not k.startswith(foreign)]


def _check_options(
    space: gym.Space[Any], scaler: ActionScaler, action_scaling: bool, bound_method: str | None
) -> None:
    unit = bool((scaler.low == -1.0).all() and (scaler.high == 1.0).all())
    if not action_scaling and not unit:
        raise UnsupportedSpaceError(
            f"Without action scaling the Box must be [-1, 1]: got action_scaling=False and "
            f"{space}. Actions would be clipped to a part of it; leave action_scaling=True."
        )
    if bound_method == "tanh":
        raise ValueError(
            "`action_bound_method` does not fit: got 'tanh', expected 'clip' or None. The policy's "
            "actions are in [-1, 1] already, and tanh would keep them within 0.76."
        )


def _check_dimensions(
    actor: FlowMapActor, critic: QEnsemble | None, layout: ObservationLayout, scaler: ActionScaler
) -> None:
    steps = actor.config
    expected = layout.obs_dim * steps.history, scaler.action_dim * steps.chunk
    for name, module in (("actor", actor), ("critic", critic)):
        if module is not None and (module.obs_dim, module.action_dim) != expected:
            raise ShapeError(
                f"The {name} does not fit the spaces: got (obs_dim, action_dim) = "
                f"({module.obs_dim}, {module.action_dim}), expected {expected} from {layout} and "
                "the action space."
            )
