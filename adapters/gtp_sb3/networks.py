"""A policy's networks as SB3 shows them: ``actor(obs)`` and ``critic(obs, actions)``."""

import pathlib
from typing import Any, ClassVar, Self, cast

import numpy.typing as npt
import torch
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from gtp_policy import FlowMapActor, QEnsemble
from gtp_policy.errors import CheckpointError
from gtp_policy.keyed_noise import keyed_noise
from gtp_sb3 import _files
from gtp_sb3._spaces import ObservationEncoder
from gtp_sb3._states import whole_or_nothing

# Parts of the host's own networks, by what does the same here.
_ELSEWHERE = {
    **dict.fromkeys(("mu", "latent_pi", "log_std", "action_dist"), "actor(obs) or policy.predict"),
    **dict.fromkeys(("qf0", "qf1", "q_networks"), "critic(obs, actions)"),
    **dict.fromkeys(("get_std", "reset_noise"), "action_noise= of GTP"),
}


class Part(BaseModel):
    """A network of the core among the host's: what `Actor` and `Critic` have in common.

    What the core's network has is found here too. A file of `save` is one of the whole policy: its
    parts are of no use without the spaces and scales of the others.

    Args:
        policy: The policy that it belongs to.
        core: The core's network.
    """

    policy: Any  # a GTPPolicy: its module imports this one
    core: Any
    kind: ClassVar[str]

    def __init__(self, policy: Any, core: nn.Module) -> None:  # noqa: ANN401 - a GTPPolicy
        super().__init__(
            policy.observation_space,
            policy.action_space,
            policy.features_extractor_class,
            policy.features_extractor_kwargs,
            normalize_images=policy.normalize_images,
            optimizer_class=policy.optimizer_class,
            optimizer_kwargs=policy.optimizer_kwargs,
        )
        self.core = core
        extractor = self.core.encoder or self.make_features_extractor()
        if isinstance(extractor, ObservationEncoder):
            extractor = extractor.extractor
        # Not registered: the policy holds its parts, and an extractor's parameters have one name.
        self.__dict__ |= {"policy": policy, "features_extractor": extractor}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:  # noqa: ANN401 - torch's types
        """Takes over parameters and buffers by their values, all of them or nothing.

        Args:
            state_dict: What ``state_dict`` returned.
            strict: Whether the names must match exactly.
            assign: Not used: the optimisers hold the parameters that are there.

        Returns:
            The missing and unexpected keys.

        Raises:
            StateMismatchError: If the state belongs to another network; nothing has been changed
                then.
        """
        with whole_or_nothing(self.policy, self):
            return super().load_state_dict(state_dict, strict)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the network has
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "core" or name.startswith("__"):  # while it is copied
                raise
        if name in _ELSEWHERE:
            raise AttributeError(
                f"`{name}` is no part of a flow map or of its critic: got {self.kind}.{name}, "
                f"expected {_ELSEWHERE[name]}. The core's networks are those of model.learner."
            )
        return getattr(self.core, name)

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever it has
        # What is read from the core's network is written there.
        core = self.__dict__.get("_modules", {}).get("core")
        own = name in self.__dict__ or hasattr(type(self), name)
        if core is not None and not own and hasattr(core, name):
            setattr(core, name, value)
        else:
            super().__setattr__(name, value)

    def rows(self, obs: PyTorchObs) -> Tensor:
        """Returns observations as the core's networks take them.

        Args:
            obs: As SB3's ``obs_to_tensor`` makes them.

        Returns:
            Shape (B, O).

        Raises:
            ValueError: If the policy sees more than one of them at a time.
            DataError: If they hold NaN or infinity.
        """
        if self.policy.has_memory:
            config = self.policy.learner.actor.config
            raise ValueError(
                f"`{self.kind}(obs)` takes one observation: got a policy with "
                f"history={config.history} and chunk={config.chunk}, expected 1 of each. Call "
                "model.predict(obs, state=...), or the networks of model.learner."
            )
        return self.policy.rows(obs).to(self.policy.device)

    def save(self, path: str | pathlib.Path) -> None:
        """Saves the policy that it belongs to, see `GTPPolicy.save`.

        Args:
            path: Name of the file.
        """
        self.policy.save(path)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Loads the policy of a file, and returns this part of it.

        Args:
            path: Name of the file, of a policy or of a whole model.
            device: Where to put it.
            custom_objects: As for `GTPPolicy.load`; also the ``policy_class``.

        Returns:
            The part; its ``policy`` is the whole.

        Raises:
            CheckpointError: As for `GTPPolicy.load`, or if the policy has no critic.
            StateMismatchError: If ``custom_objects`` do not fit the file.
        """
        replaced = custom_objects or {}
        with _files.located(path) as file:
            info, encoded = _files.read(file)
            own = {name: value for name, value in encoded.items() if name == "policy_class"}
            attributes = _files.decode_attributes(file, info, own, replaced) | replaced
            found = attributes.get("policy_class")
            if not isinstance(found, type) or not issubclass(found, BasePolicy):
                raise CheckpointError(
                    f"Checkpoint {file} is no policy of SB3: got no `policy_class`, expected a "
                    "file of GTP.save or of GTPPolicy.save."
                )
        loaded = cast(Any, found).load(str(path), device, custom_objects)
        part = getattr(loaded, cls.kind, None)
        if not isinstance(part, cls):
            raise CheckpointError(
                f"Checkpoint {path} has no {cls.kind}: got a cloned policy, expected one with a "
                "critic. Load it with GTPPolicy.load."
            )
        return part


class Actor(Part):
    """The flow map as SB3's actor: observations in, actions in [-1, 1] out.

    ``actor(obs)`` has a gradient to its parameters. `predict` is that of the policy, which acts
    with the target network.

    Attributes:
        core: The core's network.
        optimizer: Its optimiser; a target network has none.

    Example:
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from gtp_sb3 import MlpPolicy
        >>> actor = MlpPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,))).actor
        >>> actor(torch.zeros(5, 3)).shape
        torch.Size([5, 1])
    """

    core: FlowMapActor
    kind = "actor"

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Samples actions, with a gradient.

        Args:
            obs: Observations as SB3's ``obs_to_tensor`` makes them: a tensor or a dict of tensors.
            deterministic: Whether the noise is a function of the observation.

        Returns:
            Actions in [-1, 1], shape (B, A).

        Raises:
            ValueError: If the policy has a history or chunks.
            DataError: If an observation holds NaN or infinity.
        """
        rows, width = self.rows(obs), self.core.noise_dim()
        if deterministic:
            noise = keyed_noise(rows, width)
        else:
            generator = self.policy.noise_source(rows.device)
            noise = torch.randn(len(rows), width, generator=generator, device=rows.device)
        return self.core.sample_with_gradient(rows, noise)

    def predict(
        self,
        observation: Any,  # noqa: ANN401 - of the policy
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Does what `GTPPolicy.predict` does.

        Args:
            observation: Observation of the environment, or a batch.
            state: What the step before returned.
            episode_start: Which episodes begin.
            deterministic: Whether equal calls give equal actions.

        Returns:
            Actions in the units of the environment, and the state.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)


class Critic(Part):
    """The Q networks as SB3's critic: a tuple of values, each of shape (B, 1).

    Attributes:
        core: The core's networks, whose values come as one tensor (M, B).
        optimizer: Their optimiser; target networks have none.

    Example:
        >>> import torch
        >>> from gymnasium.spaces import Box
        >>> from gtp_sb3 import MlpPolicy
        >>> critic = MlpPolicy(Box(-1, 1, (3,)), Box(-2, 2, (1,))).critic
        >>> [q.shape for q in critic(torch.zeros(5, 3), torch.zeros(5, 1))]
        [torch.Size([5, 1]), torch.Size([5, 1])]
    """

    core: QEnsemble
    kind = "critic"

    def forward(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, ...]:
        """Values actions.

        Args:
            obs: Observations as SB3's ``obs_to_tensor`` makes them.
            actions: Actions in [-1, 1], shape (B, A).

        Returns:
            One tensor of shape (B, 1) for each network.

        Raises:
            ValueError: If the policy has a history or chunks.
            DataError: If an observation holds NaN or infinity.
        """
        return tuple(self.core(self.rows(obs), actions).unsqueeze(-1))

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        """Values actions by the first network alone.

        Args:
            obs: As for `forward`.
            actions: As for `forward`.

        Returns:
            Shape (B, 1).
        """
        return self.forward(obs, actions)[0]
