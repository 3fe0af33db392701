"""What a saved algorithm holds in addition to the core's learner, and what it must fit."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from pydantic import Field, JsonValue
from tianshou.algorithm.optim import OptimizerFactory
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from gtp_datasets.spaces import box_of, is_whole
from gtp_policy import ActionScaler, Config, GTPLearner
from gtp_policy.errors import CheckpointError, StateMismatchError
from gtp_policy.export import Surroundings
from gtp_policy.records import check_values, what_is_wrong
from gtp_tianshou._spaces import action_scaler_of

METADATA = "tianshou"  # key of a checkpoint's metadata that is ours
# Numbers of updates that torch's schedulers divide by.
_PERIODS = {"step_size", "total_iters", "total_size", "total_steps", "T_0", "T_i", "T_max"}
_LARGEST = 1e12  # of a number of a scheduler, as of one of a config
SCHEDULERS = "_lr_schedulers"  # key of a state dict, in the manner of Tianshou's `_optimizers`


class Saved(Config):
    """What a checkpoint holds for Tianshou alone; files of other hosts leave it at the defaults."""

    # None: that of the learner's config, which every host fills in.
    gamma: float | None = Field(default=None, ge=0, le=1, strict=True)
    deterministic_eval: bool = Field(default=True, strict=True)
    steps: int | None = Field(default=None, ge=1, le=10_000, strict=True)
    candidates: int | None = Field(default=None, ge=1, le=10_000, strict=True)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63, strict=True)
    lr_schedulers: tuple[dict[str, JsonValue], ...] = ()

    @classmethod
    def read(
        cls,
        path: str | Path,
        metadata: Mapping[str, JsonValue],
        learner: GTPLearner,
        surroundings: Surroundings,
    ) -> Self:
        """Checks the part of a checkpoint's metadata that is ours, and fills in any host's."""
        problem = f"Checkpoint {path} cannot be read", "what GTP.save wrote"
        values = metadata.get(METADATA, {})
        saved = cls._checked(values, learner, *problem)
        if Surroundings.KEY not in metadata:
            return saved
        # What exports of the file go by, whichever host wrote it.
        acts = {"steps": surroundings.steps, "candidates": surroundings.candidates}
        ours = saved.model_dump(include=set(acts), exclude_unset=True)
        if ours != {name: acts[name] for name in ours}:
            raise CheckpointError(
                f"Checkpoint {path} contradicts itself: got {ours} beside {acts}, expected the "
                "same, as GTP.save writes them."
            )
        return cls._checked({**saved.model_dump(exclude_unset=True), **acts}, learner, *problem)

    @classmethod
    def write(cls, values: dict[str, Any], learner: GTPLearner) -> dict[str, JsonValue]:
        """Returns our part of a checkpoint's metadata, by the rules that `read` has."""
        problem = "The algorithm cannot be saved", "what GTP.load would take"
        saved = cls._checked(plain_numbers(values), learner, *problem)
        return saved.model_dump(mode="json", include=set(values))

    @classmethod
    def _checked(cls, values: Any, learner: GTPLearner, problem: str, expected: str) -> Self:  # noqa: ANN401
        try:
            check_values(values)
            saved = cls.model_validate(values)
            if learner.critic is None and (saved.candidates or 1) > 1:
                raise ValueError("several candidates without a critic")
            Surroundings(steps=saved.steps, candidates=saved.candidates).check(learner)
        except ValueError as error:  # pydantic's ValidationError is one
            raise CheckpointError(
                f"{problem}: got metadata of {METADATA!r} with {what_is_wrong(error)}, expected "
                f"{expected}."
            ) from error
        return saved


def check_schedulers(states: Sequence[Any], schedulers: Sequence[LRScheduler]) -> None:
    """Raises unless there is a state of the same kind for each scheduler."""
    if not isinstance(states, list | tuple) or not all(isinstance(s, Mapping) for s in states):
        raise StateMismatchError(
            f"The state's learning-rate schedulers are none: got {states!r:.40} in {SCHEDULERS!r}, "
            "expected a list of states, as GTP.state_dict returns."
        )
    if len(states) != len(schedulers):
        raise StateMismatchError(
            f"The state has other learning-rate schedulers: got {len(states)}, expected "
            f"{len(schedulers)}. Pass the optimiser factories it was trained with; to act, "
            "GTP.load takes train_state=False."
        )
    for state, scheduler in zip(states, schedulers, strict=True):
        foreign = sorted(set(state) - set(scheduler.state_dict()))
        if foreign:
            raise StateMismatchError(
                f"The state has a scheduler of another kind: got {foreign}, which "
                f"{type(scheduler).__name__} does not have. Pass the optimiser factories it was "
                "trained with."
            )
        own = scheduler.state_dict()
        wrong = [
            name
            for name, value in state.items()
            if not _alike(value, own[name]) or (name in _PERIODS and own[name] and not value > 0)
        ]
        if wrong:
            raise StateMismatchError(
                f"The state of a {type(scheduler).__name__} is none: got "
                f"{wrong[0]}={state[wrong[0]]!r:.40}, expected what is like {own[wrong[0]]!r:.40}."
            )


def _alike(value: object, own: object) -> bool:
    """Returns whether an entry of a scheduler is of the kind that it has itself."""
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        return len(own) == len(value) and all(map(_alike, value, own))
    if isinstance(value, int | float) and isinstance(own, int | float):
        return abs(value) <= _LARGEST or value == own
    return type(value) is type(own) or own is None


def check_state(
    state: Mapping[str, Any], schedulers: list[Any] | None, own_state: Mapping[str, Any]
) -> None:
    """Raises unless a state dict has the names and shapes of our own."""
    if schedulers is None or "learner._extra_state" not in state:
        raise StateMismatchError(
            f"The state is not one of GTP: got {sorted(state)[:3]} and {len(state)} entries in "
            "all, expected what GTP.state_dict returned. A policy's state goes into "
            "policy.load_state_dict."
        )
    # What a flow map says of itself is compared by itself: it may differ and be as long, or longer.
    own, got = (
        {
            k: tuple(v.shape)
            for k, v in entries.items()
            if isinstance(v, Tensor) and not k.endswith("._extra_state")
        }
        for entries in (own_state, state)
    )
    wrong = [
        f"{k} is {got.get(k)} there, {own.get(k)} here"
        for k in sorted(own.keys() | got.keys())
        if own.get(k) != got.get(k)
    ]
    if wrong:
        raise StateMismatchError(
            f"The state belongs to other networks: got {'; '.join(wrong[:3])} ({len(wrong)} in "
            "all), expected the same names and shapes."
        )


def optimizer_maker(
    actor: OptimizerFactory, critic: OptimizerFactory, schedulers: list[LRScheduler]
) -> Callable[[str, nn.Module], torch.optim.Optimizer]:
    """Returns what a learner calls for its optimisers; their schedulers go into the list."""

    def make(name: str, module: nn.Module) -> torch.optim.Optimizer:
        factory = actor if name == "actor" else critic
        optimizer, scheduler = factory.create_instances(module)
        if scheduler is not None:
            schedulers.append(scheduler)
        return optimizer

    return make


def space_of(
    path: str | Path,
    scaler: ActionScaler | None,
    surroundings: Surroundings,
    space: gym.Space[Any] | None,
) -> gym.Space[Any]:
    """Returns the space to act in, which must be the one that was trained in."""
    shape, whole = surroundings.action_shape, surroundings.whole_actions
    if space is None:
        if scaler is None:
            raise StateMismatchError(
                f"Checkpoint {path} names no action bounds: got action_scaler=None, expected "
                "action_space=. Pass the environment's."
            )
        return box_of(scaler, shape, whole=whole)
    if scaler is not None and not scaler.is_close(action_scaler_of(space)):
        raise StateMismatchError(
            f"Checkpoint {path} was trained for other actions: got {scaler}, expected {space}."
        )
    if shape is not None and (space.shape, is_whole(space)) != (shape, whole):
        raise StateMismatchError(
            f"Checkpoint {path} was trained for other actions: got those of shape {shape}, "
            f"{'whole numbers' if whole else 'no whole numbers'}, expected {space}. Leave "
            "action_space out, or pass the environment's."
        )
    return space


def plain_numbers(value: Any) -> Any:  # noqa: ANN401 - a state may hold anything
    """Returns a nested state with Python's numbers instead of numpy's."""
    if isinstance(value, dict):
        return {key: plain_numbers(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain_numbers(v) for v in value)
    return value.item() if isinstance(value, np.generic) else value
