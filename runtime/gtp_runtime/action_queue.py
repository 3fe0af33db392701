"""Playing a policy step by step: chunks of actions one by one, and a memory of the past."""

from collections import deque
from collections.abc import Mapping

import numpy as np

from gtp_runtime.errors import ObservationError
from gtp_runtime.graph import Array
from gtp_runtime.policy import Observation, Policy, is_masked


class ActionQueue:
    """Gives one action per observation, of a policy that plans h at once or sees m at once.

    A policy with chunks is computed every k steps; what it planned is given one action per call,
    whatever is observed meanwhile. The file says what k is, h if nothing else was chosen in
    training, and whether the chunks that speak of the present step are averaged. A policy with a
    history sees the last m observations; at the start of an episode the first one stands for those
    before it. With h = 1 and m = 1 a queue is the policy.

    A queue belongs to one episode at a time and to one thread; a call that a `Watchdog` no longer
    waits for may end behind `reset`, and belongs to the episode that it began in. Several may share
    a policy.

    Args:
        policy: The policy.
        play: Actions of each chunk that are played, 1 to h, without averages; default as the file
            says.
        deterministic: Whether actions start from noises that are a function of the observation.

    Raises:
        ValueError: If ``play`` is out of range.

    Example:
        >>> import numpy as np
        >>> from gtp_runtime import ActionQueue, Policy, example_file
        >>> queue = ActionQueue(Policy.load(example_file()))
        >>> queue.reset(seed=0)
        >>> queue.act(np.zeros(3)).shape
        (1,)
    """

    def __init__(
        self, policy: Policy, *, play: int | None = None, deterministic: bool = False
    ) -> None:
        chunk = policy.document.chunk
        self._ensemble = policy.document.ensemble if play is None else None
        play = policy.document.every if play is None else play
        play = int(play) if isinstance(play, np.integer) else play
        if type(play) is not int or not 1 <= play <= chunk:
            raise ValueError(
                f"`play` is out of range: got {play}, expected an integer from 1 to {chunk}, the "
                "actions of a chunk."
            )
        self._policy, self._play, self._deterministic = policy, play, deterministic
        self._kept = -(-chunk // play) if self._ensemble is not None else 1
        self._episode = _Episode(policy, self._kept, None)

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode: forgets what was planned and what was seen.

        Args:
            seed: Seed of the episode's noises; default at random.

        Raises:
            NoiseError: If the noise is inside the file, where no seed reaches it.
        """
        if seed is not None and self._policy.document.noise_input is None:
            self._policy.draw_noise([], seed=seed)  # which says so
        # Not cleared: a late call may still be at work on what was.
        self._episode = _Episode(self._policy, self._kept, seed)

    def act(self, obs: Observation) -> Array:
        """Returns the next action.

        Every observation is checked, those too that no action is computed for. One that is refused
        leaves the queue as it was.

        Args:
            obs: What is observed now: one observation, without a batch and without a history.

        Returns:
            Action, float32, shape ``action.shape``.

        Raises:
            ObservationError: As `Policy.act` raises it.
        """
        episode = self._episode
        checked = self._check(episode, obs)
        document = self._policy.document
        now = episode.age % self._play
        if now == 0:
            chunk = self._policy.compute(checked, self._noise(episode, checked))
            episode.plans.appendleft(chunk.reshape(-1, *document.action_shape))
        episode.age += 1
        self._remember(episode, obs)
        if self._ensemble is None:
            action: Array = episode.plans[0][now, ...]  # an array also where it is a number
            return action
        return self._average(episode, now)

    def skip(self, obs: Observation) -> None:
        """Lets a step pass without an action: what was planned for it is left out, it is seen.

        `Watchdog` does so for late calls that had not begun.

        Args:
            obs: What was observed at that step, as for `act`.

        Raises:
            ObservationError: As `act` raises it; the queue is as it was.
        """
        episode = self._episode
        self._check(episode, obs)
        if episode.age % self._play:
            episode.age += 1
        else:  # a chunk was due: it is planned at the next step, from which on the old ones are off
            episode.plans.clear()
        self._remember(episode, obs)

    def _check(self, episode: "_Episode", obs: Observation) -> list[Array]:
        """Returns what the policy is to see, checked."""
        checked, single = self._policy.check(self._window(episode, obs))
        if not single:
            raise ObservationError(
                f"The observation has the wrong shape: got a batch of {len(checked[0])}, expected "
                "one observation. Give each environment a separate queue."
            )
        return checked

    def _remember(self, episode: "_Episode", obs: Observation) -> None:
        if self._policy.document.history > 1:
            episode.past.append(copied(obs))

    def _average(self, episode: "_Episode", now: int) -> Array:
        """Returns the mean of what all chunks say of the present step, those before it the more."""
        places = range(now, self._policy.document.chunk, self._play)
        said = np.stack([plan[i] for i, plan in zip(places, episode.plans, strict=False)])
        number = np.arange(len(said))[::-1]  # the oldest is 0
        weight = np.exp(-float(self._ensemble or 0) * number)
        weight = (weight / weight.sum()).astype(np.float32)
        document = self._policy.document
        mean = np.clip(np.tensordot(weight, said, 1), document.low, document.high)
        return np.asarray(mean)

    def _noise(self, episode: "_Episode", parts: list[Array]) -> Array | None:
        document = self._policy.document
        if episode.random is None or self._deterministic or document.noise_input is None:
            return self._policy.draw_noise(parts, deterministic=self._deterministic)
        return episode.random.standard_normal((1, *document.noise_shape), np.float32)

    def _window(self, episode: "_Episode", obs: Observation) -> Observation:
        """Returns what the policy sees: the observation, or the last m of them."""
        history = self._policy.document.history
        if history == 1:
            return obs
        for part in obs.values() if isinstance(obs, Mapping) else [obs]:
            if is_masked(part):  # stacked, there is no mask any more
                raise ObservationError(
                    "The observation is masked: got elements without a value, expected numbers "
                    "only. What lies under a mask is no number to act on."
                )
        seen = [*episode.past, obs][-history:]
        seen = [seen[0]] * (history - len(seen)) + seen
        try:
            if isinstance(obs, Mapping):
                return {
                    key: np.stack([np.asarray(o[key]) for o in seen if isinstance(o, Mapping)])
                    for key in obs
                }
            return np.stack([np.asarray(o) for o in seen])
        except (ValueError, KeyError) as error:
            raise ObservationError(
                f"The observation has another structure than the last ones: got {error}."
            ) from error


def copied(obs: Observation) -> Observation:
    """Returns a copy of an observation: a loop may write the next one into the same array.

    Args:
        obs: The observation; masks stay.

    Returns:
        The copy.

    Example:
        >>> from gtp_runtime.action_queue import copied
        >>> copied([0.5])
        array([0.5])
    """
    if isinstance(obs, Mapping):
        return {key: np.array(part, subok=True) for key, part in obs.items()}
    return np.array(obs, subok=True)


class _Episode:
    """What a queue remembers of an episode."""

    def __init__(self, policy: Policy, kept: int, seed: int | None) -> None:
        self.age = 0  # steps
        self.plans: deque[Array] = deque(maxlen=kept)  # chunks, the newest first
        self.past: deque[Observation] = deque(maxlen=policy.document.history)
        self.random = None if seed is None else np.random.default_rng(seed)
