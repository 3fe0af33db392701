"""Evaluation: episodes whose starts are a function of seed and update, many in one batch."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from gtp_datasets.spaces import check_dataset, members_of
from gtp_experiments.config import EvaluationConfig, ExperimentConfig
from gtp_experiments.environments import Env, check_env, environment_of, flat_observations, make_env
from gtp_experiments.errors import ExperimentError
from gtp_policy import Config, GTPLearner, OfflineDataset
from gtp_policy import act as act_with
from gtp_policy.chunks import ChunkPlayer
from gtp_policy.errors import NonFiniteError

Array = np.ndarray[Any, np.dtype[Any]]
Act = Callable[[Array], Array]
"""From flat observations (n, O) to actions (n, A) in the units of the environment."""


class ChunkedPolicy:
    """An `Act` with memory: it has to be told whose observations come next.

    Args:
        player: Plays the policy.
        to_box: From actions in [-1, 1] to the units of the environment.
        device: Where the policy looks at observations.

    Example:
        >>> import numpy as np, torch
        >>> from gtp_experiments.evaluation import ChunkedPolicy
        >>> from gtp_policy.chunks import ChunkPlayer
        >>> player = ChunkPlayer(lambda obs: torch.zeros(len(obs), 4), chunk=4)
        >>> policy = ChunkedPolicy(player, lambda action: action)
        >>> policy.expect([0, 2], [True, True])
        >>> policy(np.zeros((2, 3), np.float32)).shape
        (2, 1)
    """

    def __init__(
        self,
        player: ChunkPlayer,
        to_box: Callable[[Array], Array],
        device: torch.device | str = "cpu",
    ) -> None:
        self._player, self._to_box, self._device = player, to_box, device
        self._rows: dict[int, Array] = {}
        self._envs: Sequence[int] = ()

    def expect(self, envs: Sequence[int], starts: Sequence[bool]) -> None:
        """Says which environments the next observations are from.

        Args:
            envs: Their numbers.
            starts: Whether their episodes begin.
        """
        self._envs = envs
        for env, start in zip(envs, starts, strict=True):
            if start:
                self._rows.pop(env, None)

    def __call__(self, obs: Array) -> Array:
        """Returns actions (n, A) for observations (n, O) of the expected environments."""
        known = [self._rows.get(env) for env in self._envs]
        like = next((row for row in known if row is not None), None)
        state = None
        if like is not None:
            rows = np.stack([np.zeros_like(like) if row is None else row for row in known])
            state = self._player.from_rows(rows, obs.shape[1])
        action, after = self._player.step(torch.from_numpy(obs).to(self._device), state)
        self._rows.update(zip(self._envs, after.to_rows(), strict=True))
        return self._to_box(action.cpu().numpy())


class Evaluation(Config):
    """What one evaluation has seen, episode by episode.

    Example:
        >>> from gtp_experiments import Evaluation
        >>> Evaluation(update=1000, returns=(1.0, 3.0), lengths=(10, 12)).mean
        2.0
    """

    update: int = Field(lt=2**53, description="Number of updates that the policy had.")
    returns: tuple[float, ...] = Field(
        min_length=1, description="Undiscounted sum of the environment's rewards by episode."
    )
    lengths: tuple[int, ...] = Field(description="Steps by episode.")
    success: tuple[bool, ...] | None = Field(
        default=None,
        description="Whether each episode reached its goal, where the environment says so.",
    )

    @model_validator(mode="after")
    def _episode_by_episode(self) -> Self:
        for name in ("lengths", "success"):
            found = getattr(self, name)
            if found is not None and len(found) != len(self.returns):
                raise ValueError(
                    f"`{name}` is of other episodes than `returns`: got {len(found)}, expected "
                    f"{len(self.returns)}"
                )
        return self

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean number of steps."""
        return float(np.mean(self.lengths))


class Evaluator:
    """The environments of one experiment, kept open over its evaluations.

    Args:
        config: The experiment.
        dataset: What the policy is trained on.

    Raises:
        ExperimentError: If the environment cannot be built or does not fit the dataset.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import EvaluationConfig, Evaluator, RunConfig
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.0]], reward=[0.0], terminated=[1],
        ...     truncated=[0], low=[-2.0], high=[2.0])
        >>> evaluation = EvaluationConfig(environment="Pendulum-v1", episodes=2)
        >>> config = RunConfig(dataset="a/b-v0", updates=1, evaluation=evaluation)
        >>> evaluator = Evaluator(config, dataset)
        >>> evaluator.run(lambda obs: np.zeros((len(obs), 1), np.float32), update=0).lengths
        (200, 200)
        >>> evaluator.close()
    """

    def __init__(self, config: ExperimentConfig, dataset: OfflineDataset) -> None:
        self._config, self._dataset = config, dataset
        self._envs = _opened(environment_of(config), dataset, config.evaluation)

    def run(
        self,
        act: Act,
        update: int,
        on_step: Callable[[int], None] = lambda left: None,
        *,
        seed: int | None = None,
    ) -> Evaluation:
        """Runs the episodes of one evaluation.

        Args:
            act: The policy; it gets the observations of all running episodes at once.
            update: Number of updates that it had; the starts depend on it.
            on_step: Called before each step with the number of episodes that are not done.
            seed: Of the run, on which the starts depend too; default the experiment's.

        Returns:
            What was seen.

        Raises:
            NonFiniteError: If an action is NaN or infinite.
            ExperimentError: If the environment returns an observation, a reward or a success that
                is no finite number, or none where the task is scored by success.
        """
        config = self._config.evaluation
        own = self._config.seed if seed is None else seed
        entropy = np.random.SeedSequence([config.seed, own, update])
        seeds = [int(word) for word in entropy.generate_state(config.episodes)]
        seen = _run_episodes(
            act, self._envs, self._dataset, seeds, update, config.max_steps, on_step
        )
        if self._config.scored_by == "success" and seen.success is None:
            raise ExperimentError(
                f"{self._config.task} is scored by success: got no `success` in the environment's "
                "info, expected one per episode. Evaluate in the task's own environment."
            )
        return seen

    def close(self) -> None:
        """Closes the environments."""
        _close(self._envs)


def _opened(name: str, dataset: OfflineDataset, config: EvaluationConfig) -> list[Env]:
    """Returns as many environments as are open at a time, once the first one fits the dataset.

    A function may return one that is open already, as of a robot; two episodes would mix in it.
    """
    envs: list[Env] = []
    try:
        for _ in range(min(config.episodes, config.parallel)):
            env = make_env(name)
            if any(env.unwrapped is other.unwrapped for other in envs):
                break
            envs.append(env)
            if len(envs) == 1:
                check_env(env, dataset, name)
    except BaseException:
        _close(envs)
        raise
    return envs


def _close(envs: Sequence[Env]) -> None:
    for env in envs:
        env.close()


def _run_episodes(
    act: Act,
    envs: list[Env],
    dataset: OfflineDataset,
    seeds: Sequence[int],
    update: int,
    max_steps: int | None,
    on_step: Callable[[int], None] = lambda left: None,
) -> Evaluation:
    """Runs one episode per seed; an environment whose episode ends takes the next one."""
    returns, lengths = [0.0] * len(seeds), [0] * len(seeds)
    success: list[bool | None] = [None] * len(seeds)
    waiting, left = iter(range(len(seeds))), len(seeds)
    running = dict(enumerate(next(waiting) for _ in range(min(len(envs), len(seeds)))))
    obs = {i: envs[i].reset(seed=seeds[episode])[0] for i, episode in running.items()}
    while running:
        on_step(left)
        flat = flat_observations([obs[i] for i in running], dataset)
        if not np.isfinite(flat).all():
            raise ExperimentError(
                f"The environment returns an observation that is not finite: got "
                f"{flat[~np.isfinite(flat)][0]}, expected finite numbers. The policy is not to "
                "blame: look at the environment."
            )
        if isinstance(act, ChunkedPolicy):
            act.expect(list(running), [not lengths[episode] for episode in running.values()])
        actions = act(flat)
        if not np.isfinite(actions).all():
            raise NonFiniteError(
                f"The policy acts with numbers that are not finite after {update} updates: got "
                f"{actions[~np.isfinite(actions)][0]}, expected finite ones. It has diverged."
            )
        for (i, episode), action in zip(list(running.items()), actions, strict=True):
            own = members_of(envs[i].action_space, action)
            obs[i], reward, terminated, truncated, info = envs[i].step(own)
            returns[episode] += _number("reward", reward)
            lengths[episode] += 1
            reached = info.get("success", info.get("is_success"))
            if reached is not None:
                success[episode] = _number("success", reached) != 0 or bool(success[episode])
            if terminated or truncated or lengths[episode] == max_steps:
                left -= 1
                following = next(waiting, None)
                if following is None:
                    del running[i]
                else:
                    running[i] = following
                    obs[i] = envs[i].reset(seed=seeds[following])[0]
    reported = [s for s in success if s is not None]
    return Evaluation(
        update=update,
        returns=tuple(returns),
        lengths=tuple(lengths),
        success=tuple(reported) if len(reported) == len(seeds) else None,
    )


def _number(name: str, value: object) -> float:
    """Returns what an environment says as a number: Python's, numpy's, or an array of one."""
    try:
        number = float(np.asarray(value, np.float64).reshape(()))
    except (TypeError, ValueError) as error:
        raise ExperimentError(
            f"The environment returns a `{name}` that is no number: got {value!r}, expected one."
        ) from error
    if not np.isfinite(number):
        raise ExperimentError(
            f"The environment returns a `{name}` that is not finite: got {number}, expected a "
            "finite number."
        )
    return number


def check_units(learner: GTPLearner, dataset: OfflineDataset) -> None:
    """Raises unless data are in the units that a learner was trained in.

    Args:
        learner: The learner; one that knows no units takes all.
        dataset: The data.

    Raises:
        DataError: If the bounds of its actions or its observations are others.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments.evaluation import check_units
        >>> from gtp_policy import GTPLearner, OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.5]], reward=[0.0], terminated=[1],
        ...     truncated=[0], low=[-2.0], high=[2.0])
        >>> check_units(GTPLearner.from_dataset(dataset), dataset)
    """
    check_dataset(
        dataset,
        learner.layout or dataset.layout,
        learner.action_scaler or dataset.action_scaler,
        dataset.gamma,
    )


def policy_of(learner: GTPLearner, dataset: OfflineDataset, config: EvaluationConfig) -> Act:
    """Makes a learner act as an evaluation needs: with actions of the target actor.

    They are sampled unless ``config.deterministic`` says otherwise, and the noise is a function of
    the learner's seed and number of updates.

    Args:
        learner: The learner.
        dataset: What it was trained on; knows the units of the actions.
        config: K, candidates and how one of them is chosen, or that actions are deterministic.

    Returns:
        The policy, with its own stream of noise: make a new one for each evaluation.

    Raises:
        DataError: If the dataset is in other units than the learner was trained in.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import EvaluationConfig, policy_of
        >>> from gtp_policy import GTPLearner, OfflineDataset
        >>> from gtp_policy.acting import SoftmaxChoice
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.5]], reward=[0.0], terminated=[1],
        ...     truncated=[0], low=[-2.0], high=[2.0])
        >>> learner = GTPLearner.from_dataset(dataset)
        >>> evaluation = EvaluationConfig(candidates=4, choice=SoftmaxChoice())
        >>> act = policy_of(learner, dataset, evaluation)
        >>> act(np.zeros((5, 3), np.float32)).shape
        (5, 1)
    """
    check_units(learner, dataset)
    generator = learner.stream("evaluation")

    def whole(obs: torch.Tensor) -> torch.Tensor:
        if config.deterministic:
            return learner.act(obs, steps=config.steps, deterministic=True)
        return act_with(
            learner.target_actor,
            learner.target_critic,
            obs,
            steps=config.steps,
            candidates=config.candidates,
            choice=config.choice,
            generator=generator,
        )

    actor = learner.target_actor.config
    if actor.history > 1 or actor.chunk > 1:
        player = ChunkPlayer(
            whole,
            chunk=actor.chunk,
            history=actor.history,
            playback=learner.config.playback,
        )
        return ChunkedPolicy(player, dataset.action_scaler.to_box, dataset.device)

    def act(obs: Array) -> Array:
        action = whole(torch.from_numpy(obs).to(dataset.device))
        return dataset.action_scaler.to_box(action.cpu().numpy())

    return act


def evaluate(
    learner: GTPLearner,
    dataset: OfflineDataset,
    environment: str,
    *,
    episodes: int = 20,
    deterministic: bool = False,
    candidates: int = 1,
    max_steps: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Tries a learner in an environment, all episodes side by side.

    Equal calls give equal numbers on the same machine: starts are a function of ``seed``, and the
    noise of actions is one of the learner's seed and number of updates.

    Args:
        learner: The policy.
        dataset: What it was trained on; knows the units of observations and actions.
        environment: An id of gymnasium, or ``module:function``, as for `make_env`.
        episodes: How many.
        deterministic: Whether the policy acts without sampling.
        candidates: Actions to draw per observation, of which one is taken as the learner's
            ``choice`` says.
        max_steps: Cuts longer episodes; default the environment's own limit alone.
        seed: Of the starts.

    Returns:
        What was seen, episode by episode.

    Raises:
        DataError: If the dataset is in other units than the learner was trained in.
        ExperimentError: If the environment cannot be built or does not fit the dataset.
        pydantic.ValidationError: If a number is out of range.

    Example:
        >>> from gtp_experiments import evaluate, mountain_car_logs
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> logs = mountain_car_logs(1)
        >>> learner = GTPLearner.from_dataset(logs, GTPConfig(critic=None))
        >>> evaluate(learner, logs, "MountainCarContinuous-v0", episodes=2, max_steps=9).lengths
        (9, 9)
    """
    config = EvaluationConfig(
        environment=environment,
        episodes=episodes,
        deterministic=deterministic,
        candidates=candidates,
        max_steps=max_steps,
        seed=seed,
    )
    if config.candidates > 1:
        config = config.replace(choice=learner.config.choice)
    starts = [int(word) for word in np.random.SeedSequence(seed).generate_state(episodes)]
    act = policy_of(learner, dataset, config)
    envs = _opened(environment, dataset, config)
    try:
        return _run_episodes(act, envs, dataset, starts, learner.updates, max_steps)
    finally:
        _close(envs)
