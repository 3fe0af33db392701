"""What is exported: a policy and what stands around it, from wherever a policy may live."""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from gtp_policy._config import Bool, Config, Width
from gtp_policy._engine.whole import check_whole
from gtp_policy._numbers import as_int
from gtp_policy.acting import (
    ArgmaxChoice,
    Choice,
    SoftmaxChoice,
    chosen_by,
    needs_critic,
)
from gtp_policy.actor import FlowMapActor
from gtp_policy.checkpoint import Checkpoint, load_checkpoint
from gtp_policy.checkpoint.bundle import content_id
from gtp_policy.chunks import Playback
from gtp_policy.critic import QEnsemble
from gtp_policy.errors import CheckpointError, DataError, ExportError
from gtp_policy.files import expanded
from gtp_policy.functional import check_shape, unwrapped
from gtp_policy.learner import GTPLearner
from gtp_policy.records import check_values, what_is_wrong
from gtp_policy.spaces import ActionScaler, ObservationLayout


class ObservationFacts(NamedTuple):
    """What a space says of a part of the observation besides its shape.

    Attributes:
        dtype: Name of the type of its numbers.
        low: Least value of each element in C order; None where not known.
        high: Largest values, likewise.

    Example:
        >>> from gtp_policy.export import ObservationFacts
        >>> ObservationFacts("uint8").low is None
        True
    """

    dtype: str = "float32"
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


class PolicySource(NamedTuple):
    """A policy and what its file has to know of its surroundings.

    Hosts build one in their ``policy_source()``; everything else comes from a learner or a
    checkpoint.

    Attributes:
        actor: The flow map that acts.
        critic: Values candidates; None without one.
        layout: How observations become vectors; None: vectors of the actor's length.
        action_scaler: Bounds of the action Box; None: [-1, 1].
        action_shape: Shape of one action; None: a vector.
        whole_actions: Whether the Box holds whole numbers: actions are rounded to the nearest.
        observations: What spaces say, by key of the Dict or "" of a Box.
        steps: K; None: the actor's.
        candidates: n; None: 1.
        choice: How one of several candidates is chosen.
        sha256: Hash of the checkpoint's content; None: that of the weights.
        updates: Number of updates done, where known.
        playback: How chunks are played; None: each to its end.
        normalized_by: What normalises observations before the policy sees them, which is in no
            file; None: nothing does.

    Example:
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> from gtp_policy.export import PolicySource
        >>> PolicySource.of_learner(GTPLearner.build(3, 2, GTPConfig(critic=None))).candidates
        1
    """

    actor: FlowMapActor
    critic: QEnsemble | None = None
    layout: ObservationLayout | None = None
    action_scaler: ActionScaler | None = None
    action_shape: tuple[int, ...] | None = None
    whole_actions: bool = False
    observations: Mapping[str, ObservationFacts] = {}
    steps: int | None = None
    candidates: int | None = None
    choice: Choice | None = None
    sha256: str | None = None
    updates: int | None = None
    playback: Playback | None = None
    normalized_by: str | None = None

    @classmethod
    def of_learner(cls, learner: GTPLearner) -> Self:
        """Takes a learner's target networks, its bounds and layout, and its way to evaluate.

        Args:
            learner: The learner.

        Returns:
            The source.

        Raises:
            BrokenLearnerError: If an update of the learner ended half-way.
        """
        check_whole([learner])
        critic = learner.target_critic
        candidates, choice = chosen_by(learner.config, learner.target_actor, critic, None, True)
        return cls(
            learner.target_actor,
            critic,
            layout=learner.layout,
            action_scaler=learner.action_scaler,
            candidates=candidates,
            choice=choice,
            updates=learner.updates,
            playback=learner.config.playback,
            normalized_by=learner.target_actor.normalized_by,
        )


class Surroundings(Config):
    """What a host's checkpoint says of a policy's surroundings, beyond what the core keeps.

    A host writes it into the metadata of its checkpoints under `KEY`; then a file that is made
    from the checkpoint is the one that is made from the host's policy.

    Example:
        >>> from gtp_policy.export import Surroundings
        >>> Surroundings(action_shape=(2, 3)).whole_actions
        False
    """

    KEY: ClassVar[str] = "policy_surroundings"

    action_shape: tuple[Width, ...] | None = Field(
        default=None, max_length=32, description="Shape of one action; None: a vector."
    )
    whole_actions: Bool = Field(
        default=False, description="Whether the action Box holds whole numbers."
    )
    steps: Width | None = Field(default=None, description="K; None: the actor's.")
    candidates: Width | None = Field(
        default=None, description="n that the host was given; None: as the config says."
    )

    def record(self) -> dict[str, JsonValue]:
        """Returns what a host puts into the metadata of a checkpoint.

        Returns:
            The fields under `KEY`.

        Example:
            >>> from gtp_policy.export import Surroundings
            >>> Surroundings(steps=2).record()["policy_surroundings"]["steps"]
            2
        """
        return {self.KEY: self.model_dump(mode="json")}

    @classmethod
    def read(
        cls,
        path: str | Path,
        metadata: Mapping[str, JsonValue],
        learner: GTPLearner | None = None,
    ) -> Self:
        """Reads the metadata of a checkpoint.

        Args:
            path: The checkpoint, for the message.
            metadata: Its metadata; without `KEY`, as in a checkpoint of the core, there is nothing
                to know.
            learner: The learner that it holds, which they have to fit; None: not known yet.

        Returns:
            The surroundings.

        Raises:
            CheckpointError: If there is something else under `KEY`, or what does not fit the
                learner.

        Example:
            >>> from gtp_policy import GTPLearner
            >>> from gtp_policy.export import Surroundings
            >>> Surroundings.read("a.zip", {"task": "toy"}, GTPLearner.build(3, 2)).steps is None
            True
        """
        found = metadata.get(cls.KEY, {})
        try:
            check_values(found)
            own = cls.model_validate_json(json.dumps(found))
            if learner is not None:
                own.check(learner)
        except ValueError as error:
            raise CheckpointError(
                f"Checkpoint {path} cannot be read: got metadata of {cls.KEY!r} with "
                f"{what_is_wrong(error)}, expected what a host's save writes."
            ) from error
        return own

    def check(self, learner: GTPLearner) -> None:
        """Raises unless a learner could have these surroundings: within the limits of its choices.

        Args:
            learner: The learner.

        Raises:
            ValueError: If it could not.

        Example:
            >>> from gtp_policy import GTPLearner
            >>> from gtp_policy.export import Surroundings
            >>> Surroundings(action_shape=(2, 3)).check(GTPLearner.build(3, 2))
            Traceback (most recent call last):
            ...
            ValueError: an action shape of other than 2 numbers
        """
        config = learner.full_config
        dim = learner.actor.action_dim // config.actor.chunk
        if self.action_shape is not None and math.prod(self.action_shape) != dim:
            raise ValueError(f"an action shape of other than {dim} numbers")
        config.replace(
            actor=config.actor.replace(steps=self.steps or config.actor.steps),
            learner=config.learner.replace(
                eval_candidates=self.candidates or config.learner.eval_candidates
            ),
        )

    def around(self, source: PolicySource, learner: GTPLearner) -> PolicySource:
        """Returns a learner's policy as the host acts with it.

        Args:
            source: The learner's.
            learner: The learner.

        Returns:
            The same networks, in these surroundings.

        Example:
            >>> from gtp_policy import GTPConfig, GTPLearner
            >>> from gtp_policy.export import PolicySource, Surroundings
            >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
            >>> Surroundings(steps=2).around(PolicySource.of_learner(learner), learner).steps
            2
        """
        candidates, choice = chosen_by(
            learner.config, source.actor, source.critic, self.candidates, True
        )
        return source._replace(
            action_shape=self.action_shape,
            whole_actions=self.whole_actions,
            steps=self.steps,
            candidates=candidates,
            choice=choice,
        )


@runtime_checkable
class HasPolicySource(Protocol):
    """A host's policy or algorithm that can be exported."""

    def policy_source(self) -> PolicySource:
        """Returns the policy and what its file has to know."""
        ...


Exportable = PolicySource | HasPolicySource | GTPLearner | FlowMapActor | Checkpoint | str | Path


def source_of(policy: Exportable) -> PolicySource:
    """Returns the source of whatever holds a policy.

    Args:
        policy: A learner, an actor, a loaded checkpoint or the path of one, or an object with
            ``policy_source()``, as the hosts' policies and algorithms have.

    Returns:
        The source.

    Raises:
        ExportError: If it is none of these.
        CheckpointError: If a checkpoint cannot be read.

    Example:
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.export.source import source_of
        >>> source_of(FlowMapActor(3, 2)).candidates is None
        True
    """
    policy = unwrapped(policy)
    if isinstance(policy, PolicySource):
        return policy
    if isinstance(policy, FlowMapActor):
        return PolicySource(policy, normalized_by=policy.normalized_by)
    if isinstance(policy, GTPLearner):
        return PolicySource.of_learner(policy)
    if isinstance(policy, Checkpoint):
        return _of_checkpoint("that was given", policy)
    if isinstance(policy, str | Path):
        source = _of_checkpoint(policy, load_checkpoint(policy, train_state=False))
        return source._replace(sha256=content_id(expanded(policy)))
    if isinstance(policy, HasPolicySource):
        return policy.policy_source()
    raise ExportError(
        f"There is no policy to export: got {type(policy).__name__}, expected a learner, an actor, "
        "a checkpoint or its path, or a policy of gtp_sb3 or gtp_tianshou."
    )


def _of_checkpoint(path: str | Path, checkpoint: Checkpoint) -> PolicySource:
    learner = checkpoint.learner
    source = PolicySource.of_learner(learner)
    surroundings = Surroundings.read(path, checkpoint.metadata, learner)
    return surroundings.around(source, learner)._replace(
        layout=checkpoint.layout or source.layout,
        action_scaler=checkpoint.action_scaler or source.action_scaler,
    )


class Plan:
    """A policy on the CPU in float32, with every choice of its export made.

    Args:
        source: The policy.
        steps: K; default the source's, else the actor's.
        candidates: n; default the source's, else 1.
        choice: How one of several is chosen; default the source's.
        layout: Replaces the source's.
        action_scaler: Replaces the source's.

    Raises:
        ExportError: If candidates have no critic, or are chosen by chance, or chunks are not as
            long as their playback.
        DataError: If a parameter is not finite.
        ShapeError: If layout or scaler do not fit the actor.
    """

    def __init__(
        self,
        source: PolicySource,
        *,
        steps: int | None = None,
        candidates: int | None = None,
        choice: Choice | None = None,
        layout: ObservationLayout | None = None,
        action_scaler: ActionScaler | None = None,
    ) -> None:
        actor = source.actor
        self.source = source
        # Layout and bounds are of one step, the actor's dimensions of m observations and h actions.
        self.history, self.chunk = actor.config.history, actor.config.chunk
        obs_dim, self.action_dim = actor.obs_dim // self.history, actor.action_dim // self.chunk
        self.layout = layout or source.layout or ObservationLayout((obs_dim,))
        self.scaler = action_scaler or source.action_scaler
        shape = source.action_shape  # () of a number
        self.action_shape = (self.action_dim,) if shape is None else shape
        if self.layout.obs_dim != obs_dim:
            raise ExportError(
                f"`layout` is of another observation: got {self.layout}, expected one of "
                f"{obs_dim} numbers in all."
            )
        if self.scaler is not None and self.scaler.action_dim != self.action_dim:
            raise ExportError(
                f"`action_scaler` is of another action: got {self.scaler.action_dim} dimensions, "
                f"expected {self.action_dim}."
            )
        _check_observations(source)
        self.whole = source.whole_actions
        self.playback = _playback(source.playback, self.chunk, self.whole)
        self.steps = _number("steps", steps, source.steps, actor.config.steps)
        self.noise_dim = actor.noise_dim(self.steps)
        # A number that is given is one for the critic to choose from.
        own = source.choice if candidates is None else None
        self.choice = choice or own or ArgmaxChoice()
        self.candidates = _number("candidates", candidates, source.candidates, 1)
        _check_choice(self.candidates, source, self.choice)
        self.actor = _plain(actor)
        self.critic = _plain(source.critic) if needs_critic(self.candidates, self.choice) else None
        _check_numbers(self.actor, self.critic)

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the inputs in their order: "" of a Box."""
        return self.layout.keys or ("",)

    @property
    def inputs(self) -> list[str]:
        """Names of the observation's inputs."""
        return [f"obs.{key}" if self.layout.keys else "obs" for key in self.keys]

    @property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the observation's inputs, without the batch."""
        past = (self.history,) if self.history > 1 else ()
        return [(*past, *shape) for shape in self.layout.shapes]

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of what one observation gets: an action, or h of them."""
        return (self.chunk, *self.action_shape) if self.chunk > 1 else self.action_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one observation."""
        several = (self.candidates,) if self.candidates > 1 else ()
        return (*several, self.noise_dim)

    @property
    def box(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Least and largest action of one step, each (A,), in the units of the environment."""
        if self.scaler is None:
            ones = np.ones(self.action_dim, np.float32)
            return -ones, ones
        return self.scaler.low.astype(np.float32), self.scaler.high.astype(np.float32)

    def sha256(self) -> str:
        """Returns the hash of the checkpoint, or of the weights where there is none."""
        if self.source.sha256 is not None:
            return self.source.sha256
        state = {
            f"{part}.{name}": tensor
            for part, module in (("actor", self.actor), ("critic", self.critic))
            if module is not None
            for name, tensor in module.state_dict().items()
            if isinstance(tensor, Tensor)
        }
        data = {name: state[name].contiguous().clone() for name in sorted(state)}
        return hashlib.sha256(safetensors.torch.save(data)).hexdigest()

    def probes(self, rows: int) -> tuple[list[Tensor], Tensor]:
        """Returns observations as the data has them, some of them far away, and noise.

        Args:
            rows: B, number of observations.

        Returns:
            The parts of the observation and the noise, as the file takes them.
        """
        generator = torch.Generator("cpu").manual_seed(rows)
        normal = torch.randn(
            rows, self.actor.obs_dim, generator=generator, dtype=torch.float32, device="cpu"
        )
        normalizer = self.actor.normalizer
        flat = normal * normalizer.scale + normalizer.mean
        noise = torch.randn(
            (rows, *self.noise_shape), generator=generator, dtype=torch.float32, device="cpu"
        )
        found = self.layout.unflatten(flat.reshape(rows * self.history, -1))
        parts = list(found.values()) if isinstance(found, dict) else [found]
        return [
            self._as_space(key, part).reshape(rows, *shape)
            for key, part, shape in zip(self.keys, parts, self.input_shapes, strict=True)
        ], noise

    def far_away(self, parts: list[Tensor]) -> list[Tensor]:
        """Returns observations that no data has; a class is one of those there are.

        Args:
            parts: The parts of observations.

        Returns:
            As many.
        """
        facts = [self.source.observations.get(key, ObservationFacts()) for key in self.keys]
        return [
            part.sign() * 1e6 if "float" in fact.dtype else part
            for part, fact in zip(parts, facts, strict=True)
        ]

    def _as_space(self, key: str, part: Tensor) -> Tensor:
        facts = self.source.observations.get(key, ObservationFacts())
        if "float" not in facts.dtype:
            part = part.round()
        if facts.low is not None and facts.high is not None:
            shape = part.shape[1:]
            low, high = (
                torch.tensor(v, dtype=torch.float32, device="cpu").view(shape)
                for v in (facts.low, facts.high)
            )
            part = part.clamp(low, high)
        return part


def _number(name: str, *values: int | None) -> int:
    """Returns the first of some numbers that is given; 0 is one, and out of range."""
    given = next(value for value in values if value is not None)
    number = as_int(given)
    if number is None or number < 1:
        raise ExportError(f"`{name}` is out of range: got {given!r}, expected an integer >= 1.")
    return number


def _playback(playback: Playback | None, chunk: int, whole: bool) -> Playback | None:
    """Returns how chunks are played, None where it is each to its end."""
    if playback is None or chunk == 1 or playback.every is None:
        return None
    try:
        playback.check(chunk)
    except ValueError as error:
        raise ExportError(f"The policy cannot be played: {error}.") from error
    if whole and playback.ensemble is not None:
        raise ExportError(
            "A reader of the file would average whole numbers: got a playback with ensemble="
            f"{playback.ensemble} for a Box of integers, expected one without. Set "
            "learner.playback.ensemble to None."
        )
    return None if playback.every == chunk else playback


def _check_observations(source: PolicySource) -> None:
    if source.normalized_by is not None:
        raise ExportError(
            f"The policy sees observations that {source.normalized_by} has normalised: got a "
            "policy whose file would not hold that, expected one that sees the environment's own. "
            "Networks normalise by themselves: train with norm_obs=False. Or export "
            "`model.policy_source()._replace(normalized_by=None)`, whose file takes what "
            "`normalize_obs` returns, not what the environment does."
        )


def _check_choice(candidates: int, source: PolicySource, choice: Choice) -> None:
    if source.critic is None and needs_critic(candidates, choice):
        raise ExportError(
            f"A choice among candidates needs a critic: got candidates={candidates} and no critic, "
            "expected a policy with one. Take candidates=1."
        )
    if candidates > 1 and isinstance(choice, SoftmaxChoice):
        raise ExportError(
            "The policy draws among its candidates: got a SoftmaxChoice, expected one that a file "
            "can hold. Take choice=ArgmaxChoice() or ModeChoice(), or candidates=1."
        )


def _plain(module: Any) -> Any:  # noqa: ANN401 - an actor or a critic, as it came
    own = copy.deepcopy(module).to(device="cpu", dtype=torch.float32)
    return own.eval().requires_grad_(False)


def _tensors(*modules: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    for module in modules:
        if module is not None:
            yield from module.named_parameters()
            yield from module.named_buffers()


def _check_numbers(*modules: nn.Module | None) -> None:
    for name, tensor in _tensors(*modules):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(
                f"The policy cannot act: got NaN or infinity in {name}, expected finite numbers. "
                "Take a checkpoint from before training diverged."
            )


class PolicyModule(nn.Module):
    """A policy as a module of tensors alone: observations and noise in, actions of the Box out.

    What is written to every file but those of ONNX for default networks, and what all are compared
    with.

    Args:
        plan: The policy.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.export.source import Plan, PolicyModule, source_of
        >>> policy = PolicyModule(Plan(source_of(FlowMapActor(3, 2))))
        >>> policy(torch.zeros(4, 3), torch.ones(4, 2)).shape
        torch.Size([4, 2])
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.actor, self.critic, self.choice = plan.actor, plan.critic, plan.choice
        self.steps, self.candidates = plan.steps, plan.candidates
        self.noise_dim, self.scaler, self.whole = plan.noise_dim, plan.scaler, plan.whole
        self.history, self.chunk, self.result_shape = plan.history, plan.chunk, plan.result_shape
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns actions.

        Args:
            *inputs: The parts of the observation in their order, each (B, ...), then the noise,
                (B, D) or (B, n, D).

        Returns:
            Actions in the units of the environment, (B, ...), with chunks (B, h, ...).
        """
        *parts, noise = inputs
        flat = self.flatten(parts)
        action = self.to_box(self.choose(flat, self.sample(flat, noise)))
        if self.whole:
            action = action.round()
        return action.reshape(-1, *self.result_shape)

    def flatten(self, parts: Sequence[Tensor]) -> Tensor:
        """Returns observations as vectors.

        Args:
            parts: As for `forward`.

        Returns:
            (B, O), with a history (B, m O), the oldest first.
        """
        if self.history == 1:
            # A part that is one number for each observation has no axis to flatten.
            columns = [part.flatten(1) if part.ndim > 1 else part.unsqueeze(1) for part in parts]
            return torch.cat(columns, 1)
        by_step = [part.reshape(part.shape[0], self.history, -1) for part in parts]
        return torch.cat(by_step, 2).flatten(1)

    def to_box(self, action: Tensor) -> Tensor:
        """Returns actions in the units of the environment.

        Args:
            action: In [-1, 1], (B, h A).

        Returns:
            Inside the Box, not rounded, (B, h A).
        """
        if self.scaler is None:
            return action
        by_step = action.reshape(-1, self.chunk, action.shape[-1] // self.chunk)
        return self.scaler.to_box(by_step).flatten(1)

    def sample(self, flat: Tensor, noise: Tensor) -> Tensor:
        """Returns the candidates.

        Args:
            flat: Observations, (B, O).
            noise: As for `forward`.

        Returns:
            Actions in [-1, 1], (B n, A), those of one observation together.
        """
        tiled = self._tiled(flat)
        check_shape("noise", noise, (flat.shape[0], *noise.shape[1:]))
        action: Tensor = self.actor.sample_with_gradient(
            tiled, noise.reshape(-1, self.noise_dim), steps=self.steps
        )
        return action

    def choose(self, flat: Tensor, action: Tensor) -> Tensor:
        """Returns of each observation's candidates the one the critic values most, or the mode.

        Args:
            flat: Observations, (B, O).
            action: Candidates, (B n, A).

        Returns:
            Actions in [-1, 1], (B, A).
        """
        if self.candidates == 1:
            return action
        value = None if self.critic is None else self.values(flat, action)
        several = action.reshape(-1, self.candidates, action.shape[-1])
        return self.choice.take(several, value, None)

    def values(self, flat: Tensor, action: Tensor) -> Tensor:
        """Returns the critic's value of every candidate.

        Args:
            flat: Observations, (B, O).
            action: Candidates, (B n, A).

        Returns:
            Values, (B, n).
        """
        critic = cast(QEnsemble, self.critic)
        q = critic.config.reduce(critic(self._tiled(flat), action))
        return q.reshape(-1, self.candidates)

    def _tiled(self, flat: Tensor) -> Tensor:
        if self.candidates == 1:
            return flat
        width = flat.shape[-1]
        return flat.unsqueeze(1).expand(-1, self.candidates, width).reshape(-1, width)
