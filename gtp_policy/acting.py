"""From observations to actions: one sample, or the best of several by a critic."""

import copy
import math
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal, Protocol, cast, overload
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn

from gtp_policy._config import Config, Float, Int
from gtp_policy._contexts import outside
from gtp_policy._fingerprint import UPDATING, Fingerprint
from gtp_policy._numbers import as_int
from gtp_policy._random import generator_or_private
from gtp_policy.actor import FlowMapActor
from gtp_policy.critic import QEnsemble
from gtp_policy.functional import check_actions, check_kind, unwrapped
from gtp_policy.keyed_noise import keyed_noise
from gtp_policy.spaces import real_array

# Of so many actions a deterministic one is the mode where the critic prefers that, and it does so
# where the mode is better than an average action in at least this share of the observations.
MODE_CANDIDATES, LEAST_MODE_SHARE = 16, 2 / 3
# How often a learner looks, in updates, and at how many observations.
LOOK_EVERY, LOOK_AT = 1_000, 256
# So many take a CPU about as long as a device takes to start the sampler's operators one by one.
_FEW_ROWS = 32
# So many times sixteen images are as many as a minibatch has: a look takes no more memory than it.
_FEW_IMAGES = 16
_MOST_CANDIDATES = 1_000_000
# Jumps of a deterministic action, all candidates together: a second of a CPU, in a usual network.
MOST_JUMPS = 100_000
# Candidates that are all alike, in a dimension or as a whole: what is divided by instead of 0.
LEAST_SPREAD, LEAST_WIDTH = 1e-6, 1e-12
# Candidates as central as the medoid up to this share of its distances are equal, and the first of
# them is taken. In one dimension there are always two in the middle of an even number.
EQUALLY_CENTRAL = 1e-4


class ArgmaxChoice(Config):
    """Takes the candidate that the critic values most.

    Example:
        >>> from gtp_policy import GTPLearnerConfig
        >>> from gtp_policy.acting import ArgmaxChoice
        >>> GTPLearnerConfig().choice == ArgmaxChoice()
        True
    """

    kind: Literal["argmax"] = Field(default="argmax", description="Discriminator of the union.")

    def take(self, action: Tensor, q: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Returns the chosen action of each row.

        Args:
            action: Candidates, shape (B, n, A).
            q: Their values, shape (B, n).
            generator: Not used.

        Returns:
            Actions, shape (B, A).
        """
        assert q is not None
        return _at(action, q.argmax(1))


class SoftmaxChoice(Config):
    r"""Draws a candidate with probability proportional to :math:`\exp(Q / temperature)`.

    A deterministic action still takes the best one. The parents of the method evaluate with 50
    candidates at temperature 1.

    References:
        | Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning
        | (Wang et al., 2022), https://arxiv.org/abs/2208.06193

    Example:
        >>> from gtp_policy import GTPLearnerConfig
        >>> from gtp_policy.acting import SoftmaxChoice
        >>> GTPLearnerConfig(choice=SoftmaxChoice(temperature=0.5)).choice.temperature
        0.5
    """

    kind: Literal["softmax"] = Field(default="softmax", description="Discriminator of the union.")
    temperature: Float = Field(default=1.0, gt=0, description="In units of Q; small is greedy.")

    def take(self, action: Tensor, q: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Returns the chosen action of each row.

        Args:
            action: Candidates, shape (B, n, A).
            q: Their values, shape (B, n).
            generator: Source of randomness; default a stream of the package's own.

        Returns:
            Actions, shape (B, A).
        """
        assert q is not None
        # A choice that draws, draws where its generator is.
        values = q.to(q.device if generator is None else generator.device)
        probability = torch.softmax(values / self.temperature, 1)
        generator = generator_or_private(generator, values.device)
        drawn = torch.multinomial(probability, 1, generator=generator).squeeze(1)
        return _at(action, drawn.to(action.device))


class ModeChoice(Config):
    r"""Takes where the candidates lie densest: the policy's mode, without asking a critic.

    The place where the kernel density of the n candidates, each dimension over its own standard
    deviation, is largest, by mean shift from the medoid, of equal ones the first:

    .. math:: c \leftarrow \frac{\sum_i k_i(c)\, a_i}{\sum_i k_i(c)}, \quad
        k_i(c) = \exp\left(-\frac{\lVert a_i - c \rVert^2}{2 h^2}\right)

    with h such that ``neighbours`` of all pairs of candidates are closer. Where the policy has one
    mode this is close to its mean, without a sample's noise; where it has several, it is a place
    in one of them, and not between them.

    References:
        | Mean Shift: A Robust Approach Toward Feature Space Analysis (Comaniciu and Meer, 2002),
        | section 2, https://doi.org/10.1109/34.1000236

    Example:
        >>> import torch
        >>> from gtp_policy.acting import ModeChoice
        >>> candidates = torch.tensor([[[-0.51], [-0.5], [-0.49], [-0.5], [0.7]]])
        >>> ModeChoice().take(candidates, None, None)
        tensor([[-0.5000]])
    """

    kind: Literal["mode"] = Field(default="mode", description="Discriminator of the union.")
    neighbours: Float = Field(
        default=0.3,
        gt=0,
        le=1,
        description="Share of the pairs of candidates that are closer than the kernel's width: "
        "more averages more, less tells closer modes apart.",
    )
    iterations: Int = Field(default=5, ge=0, le=1_000, description="Steps of the mean shift.")

    def take(self, action: Tensor, q: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Returns the chosen action of each row.

        Args:
            action: Candidates, shape (B, n, A).
            q: Not used.
            generator: Not used.

        Returns:
            Actions, shape (B, A); within the smallest box around the candidates.
        """
        n = action.shape[1]
        if n == 1:
            return action[:, 0]
        point, scale = _scaled(action)
        apart = (point.unsqueeze(1) - point.unsqueeze(2)).square().sum(3)
        total = apart.sqrt().sum(2)
        centre = _at(point, _beyond(total).clamp_min(0).argmin(1))
        pairs = apart.flatten(1).sort(1).values[:, n:]  # without those of one and the same
        width = pairs[:, math.ceil(self.neighbours * pairs.shape[1]) - 1].clamp_min(LEAST_WIDTH)
        for _ in range(self.iterations):
            away = (point - centre.unsqueeze(1)).square().sum(2)
            near = torch.softmax(-away / (2 * width.unsqueeze(1)), 1)
            centre = (near.unsqueeze(2) * point).sum(1)
        # There and back rounds twice, which must not lead out of the Box.
        return (centre * scale.squeeze(1)).clamp(action.amin(1), action.amax(1))


def _scaled(action: Tensor) -> tuple[Tensor, Tensor]:
    """Returns candidates (B, n, A) over the standard deviation of each dimension, and that."""
    spread = (action - action.mean(1, keepdim=True)).square().mean(1, keepdim=True)
    scale = spread.sqrt().clamp_min(LEAST_SPREAD)
    return action / scale, scale


def _beyond(total: Tensor) -> Tensor:
    """Returns by how much sums of distances (B, n) are larger than what counts as the smallest."""
    return total - (1 + EQUALLY_CENTRAL) * total.amin(1, keepdim=True)


def margin_of_mode(action: Tensor) -> Tensor:
    """Returns how clear it is which candidates are the most central, where the mean shift starts.

    Args:
        action: Candidates, shape (B, n, A), n at least 2.

    Returns:
        The smallest distance of a candidate's sum of distances from what counts as the smallest
        sum, over the latter, (B,): where it is rounding, the mode may be another one on another
        processor.

    Example:
        >>> import torch
        >>> from gtp_policy.acting import margin_of_mode
        >>> margin_of_mode(torch.tensor([[[-1.0], [0.0], [1.0]]]))
        tensor([0.4999])
    """
    point, _ = _scaled(action)
    total = torch.cdist(point, point).sum(2)
    smallest = total.amin(1)
    # The smallest itself is where it is by definition.
    gap = _beyond(total).abs().scatter(1, total.argmin(1, keepdim=True), torch.inf)
    return gap.amin(1) / smallest.clamp_min(1e-12)


Choice = Annotated[ArgmaxChoice | SoftmaxChoice | ModeChoice, Field(discriminator="kind")]


def needs_critic(candidates: int, choice: Choice | None) -> bool:
    """Returns whether it takes a critic to choose an action.

    Args:
        candidates: n, actions to choose from.
        choice: How; None for `ArgmaxChoice`.

    Returns:
        The answer.

    Example:
        >>> from gtp_policy.acting import ModeChoice, needs_critic
        >>> needs_critic(16, None), needs_critic(16, ModeChoice()), needs_critic(1, None)
        (True, False, False)
    """
    return candidates > 1 and not isinstance(choice, ModeChoice)


class _Choices(Protocol):
    """What an acting learner is configured with."""

    @property
    def eval_candidates(self) -> int | None:
        """Number of noises of a deterministic action; None: as `mode_share` says."""

    @property
    def choice(self) -> Choice:
        """How one of several candidates is chosen."""

    @property
    def deterministic_choice(self) -> Choice:
        """What a deterministic action is of its candidates."""


@torch.no_grad()
def mode_share(actor: FlowMapActor, critic: QEnsemble, obs: Tensor) -> float:
    """Returns in which share of observations the policy's mode is better than what it samples.

    The mode is that of 16 actions (`ModeChoice`), and is better where the critic values it above
    the mean of their values. Where a policy is one action and noise about it, as of an agent that
    walked with noise, that is nearly everywhere; where it is several actions, as before a wall, the
    mode is one of them and better in about half of the observations.

    Args:
        actor: The policy, with its own number of steps.
        critic: Values the actions.
        obs: Observation, shape (B, O), on their device.

    Returns:
        The share, from 0 to 1. Nothing random is drawn: noises are those of `keyed_noise`.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor, QEnsemble
        >>> from gtp_policy.acting import mode_share
        >>> 0 <= mode_share(FlowMapActor(3, 2), QEnsemble(3, 2), torch.zeros(8, 3)) <= 1
        True
    """
    if actor.encoder is not None and obs.shape[0] > _FEW_IMAGES:  # sixteen times that are encoded
        parts = torch.split(obs, _FEW_IMAGES)
        return sum(len(part) * mode_share(actor, critic, part) for part in parts) / obs.shape[0]
    rows, n = obs.shape[0], MODE_CANDIDATES
    noise = keyed_noise(obs, n * actor.noise_dim()).reshape(rows * n, -1)
    tiled = obs.repeat_interleave(n, 0)
    action = actor.sample(tiled, noise=noise)
    mode = ModeChoice().take(action.view(rows, n, -1), None, None)
    of_mode = critic.config.reduce(critic(obs, mode))
    mean = critic.config.reduce(critic(tiled, action)).view(rows, n).mean(1)
    return (of_mode > mean).double().mean().item()


class _Trained(Protocol):
    """What a learner is, as far as it looks at its policy."""

    target_actor: FlowMapActor
    target_critic: QEnsemble | None
    config: Any
    updates: int


def look(learner: _Trained, done: int, observations: Callable[[], Tensor]) -> None:
    """Measures `mode_share` of a learner's target networks every 1,000 updates, and at the end.

    Args:
        learner: The learner; its target actor keeps the result.
        done: How many updates it has just done.
        observations: Returns some of the data's, shape (B, O), on its device; of 256 of them.

    Example:
        >>> from gtp_policy import GTPLearner
        >>> from gtp_policy.acting import look
        >>> learner = GTPLearner.build(3, 2)
        >>> learner.updates = 1_000
        >>> look(learner, 1, lambda: torch.zeros(8, 3))
        >>> learner.target_actor.mode_share is None
        False
    """
    updates, critic = learner.updates, learner.target_critic
    due = updates % LOOK_EVERY < done or updates == learner.config.total_updates
    if not due or learner.config.eval_candidates is not None:
        return
    if critic is None:  # what a critic saw of the actor that this one goes on from is over
        learner.target_actor.mode_share = None
        return
    obs = observations()[:LOOK_AT]
    learner.target_actor.mode_share = mode_share(learner.target_actor, critic, obs)


def chosen_by(
    config: _Choices,
    actor: FlowMapActor,
    critic: QEnsemble | None,
    candidates: int | None,
    deterministic: bool,
) -> tuple[int, Choice]:
    """Returns among how many candidates an action is chosen, and how.

    Args:
        config: The learner's choices.
        actor: What acts, with what was seen of it.
        critic: Its critic; None for behaviour cloning.
        candidates: As the caller gave it; None leaves it to the config.
        deterministic: Whether the action is to be the same every time.

    Returns:
        n and the choice. A number that was given is one for the critic to choose from.

    Example:
        >>> from gtp_policy import FlowMapActor, GTPLearnerConfig
        >>> from gtp_policy.acting import chosen_by
        >>> chosen_by(GTPLearnerConfig(), FlowMapActor(3, 2), None, None, True)
        (1, ModeChoice(kind='mode', neighbours=0.3, iterations=5))
    """
    if candidates is not None or not deterministic:
        return 1 if candidates is None else candidates, config.choice
    choice = config.deterministic_choice
    if critic is None and not isinstance(choice, ModeChoice):
        return 1, choice
    if config.eval_candidates is not None:
        return config.eval_candidates, choice
    narrow = (actor.mode_share or 0.0) >= LEAST_MODE_SHARE
    return MODE_CANDIDATES if narrow else 1, choice


@overload
def act(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: Tensor,
    *,
    steps: int | None = None,
    candidates: int = 1,
    choice: Choice | None = None,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor: ...


@overload
def act(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: npt.NDArray[Any],
    *,
    steps: int | None = None,
    candidates: int = 1,
    choice: Choice | None = None,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> npt.NDArray[np.floating]: ...


def act(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: Tensor | npt.NDArray[Any],
    *,
    steps: int | None = None,
    candidates: int = 1,
    choice: Choice | None = None,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor | npt.NDArray[np.floating]:
    r"""Acts with an actor and, where there is a choice, the critic's pessimistic values.

    .. math:: a = \arg\max_{a_i} \min_j Q_j(o, a_i), \quad a_1, \ldots, a_n \sim \pi(\cdot \mid o)

    `GTPLearner.act` is this function with the learner's target networks and its default
    number of candidates.

    Args:
        actor: The policy.
        critic: Values several candidates; None is fine for one.
        obs: Observation, shape (B, O), of the actor's dtype, on its device or on the CPU. On the
            CPU they get their actions there: few rows from a copy of the networks, which is faster
            than waiting for a GPU, more from the device (`CPUSnapshot`). Or a NumPy array of any
            real numbers, which are rounded to the actor's dtype.
        steps: K; default the actor's.
        candidates: n, actions to draw per observation.
        choice: How one of several candidates is chosen; default `ArgmaxChoice`, which a
            deterministic action takes instead of a choice that draws.
        deterministic: Start from noises that are a function of the observation (`keyed_noise`).
            Equal calls then give equal bits; an observation in another row, or in a batch of
            another size, gets the same action up to rounding (`GTPLearner.act`).
        generator: Source of the noise; default a stream of the package's own, which begins at the
            same place in every process: give each of several workers a generator of its own, as
            ``learner.stream(f"worker {rank}")``.

    Returns:
        Actions in [-1, 1], shape (B, A): an array for an array, a tensor for a tensor.

    Raises:
        ShapeError: If ``obs`` has the wrong shape.
        DataError: If ``obs`` is neither an array nor a tensor of the actor's dtype and device, or
            on the CPU holds NaN or infinity, or is an array for which the action is not finite.
        ValueError: If ``candidates`` or ``steps`` is smaller than 1, or several candidates are
            requested without a critic.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor, QEnsemble, act
        >>> actor, critic, obs = FlowMapActor(3, 2), QEnsemble(3, 2), torch.zeros(2, 3)
        >>> calls = [act(actor, critic, obs, candidates=8, deterministic=True) for _ in range(2)]
        >>> torch.equal(*calls)
        True
    """
    actor, critic = unwrapped(actor), unwrapped(critic)
    check_kind("actor", actor, FlowMapActor)
    if isinstance(obs, np.ndarray):
        # A copy: torch warns of arrays that must not be written to.
        rows = torch.from_numpy(real_array("obs", obs).copy()).to(actor.dtype)
        action = act(
            actor,
            critic,
            rows,
            steps=steps,
            candidates=candidates,
            choice=choice,
            deterministic=deterministic,
            generator=generator,
        )
        check_actions(action)
        # NumPy has no bfloat16.
        return (action.float() if action.dtype == torch.bfloat16 else action).numpy()
    candidates = _check(critic, candidates, choice)
    if (
        isinstance(obs, Tensor)
        and obs.is_cpu
        and not cast(Tensor, actor._buffers["fixed_noise"]).is_cpu
    ):
        snapshot = _SNAPSHOTS.setdefault(actor, CPUSnapshot())
        return snapshot.act(
            actor,
            critic,
            obs,
            steps=steps,
            candidates=candidates,
            choice=choice,
            deterministic=deterministic,
            generator=generator,
        )
    if candidates == 1 and not deterministic:
        return actor.sample(obs, steps=steps, generator=generator)
    actor.check_observations(obs)
    picker = _picker(choice, deterministic)
    own = keyed_noise(obs, candidates * actor.noise_dim(steps)) if deterministic else None
    return _choose(actor, critic, obs, own, steps, candidates, picker, generator)


class CPUSnapshot:
    """Acts for observations on the CPU with networks that live on another device.

    With a few rows a device mostly waits: for every small kernel, and for two transfers. So up to
    32 rows (observations times candidates) are computed by copies on the CPU, which are renewed
    when the networks were written to; more rows go to the networks and come back. Both draw the
    noise on the CPU, so that the same generator gives the same actions up to rounding.

    The copies follow every parameter, buffer and module. What is none of these, such as a hook or
    a plain attribute, is copied along with the modules and not looked at again. Modules with a
    method of their own, such as another ``forward``, are not copied: their rows go to the device.

    Example:
        >>> import torch
        >>> from gtp_policy import FlowMapActor
        >>> from gtp_policy.acting import CPUSnapshot
        >>> snapshot, actor, obs = CPUSnapshot(), FlowMapActor(3, 2), torch.zeros(1, 3)
        >>> snapshot.act(actor, None, obs, stamp=0).shape
        torch.Size([1, 2])
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[str, _Copy] = {}

    def __reduce__(self) -> tuple[type["CPUSnapshot"], tuple[()]]:
        """Copies and pickles as an empty one: copies are made where they are needed."""
        return CPUSnapshot, ()

    def act(
        self,
        actor: FlowMapActor,
        critic: QEnsemble | None,
        obs: Tensor,
        *,
        stamp: object = None,
        steps: int | None = None,
        candidates: int = 1,
        choice: Choice | None = None,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns what `act` returns, for and on the CPU.

        Args:
            actor: The policy, on any device.
            critic: Values several candidates, on the same device; None is fine for one.
            obs: Observation, shape (B, O), on the CPU.
            stamp: Anything that differs after writes which tensors do not count themselves, such as
                those through ``.data``. Updates of a `GTPLearner` are counted.
            steps: As for `act`.
            candidates: As for `act`.
            choice: As for `act`.
            deterministic: As for `act`.
            generator: Source of the noise, on the CPU.

        Returns:
            Actions in [-1, 1], shape (B, A), on the CPU.

        Raises:
            ShapeError: If ``obs`` has the wrong shape.
            DataError: If ``obs`` is no tensor of the actor's dtype.
            ValueError: As for `act`.
        """
        actor, critic = unwrapped(actor), unwrapped(critic)
        candidates = _check(critic, candidates, choice)
        rows = candidates * obs.shape[0]
        if rows <= _FEW_ROWS:
            # One thread at a time: another one would renew the copies while this one samples.
            with self._lock:
                own = self._copy("actor", actor, stamp)
                needed = needs_critic(candidates, choice)
                valued_by = self._copy("critic", critic, stamp) if needed else None
                if own is not None and not (needed and valued_by is None):
                    own.config = actor.config
                    return act(
                        own,
                        valued_by,
                        obs,
                        steps=steps,
                        candidates=candidates,
                        choice=choice,
                        deterministic=deterministic,
                        generator=generator,
                    )
        like = actor.fixed_noise
        moved = obs.to(like.device)
        actor.check_observations(moved)
        source, picker = generator_or_private(generator, obs.device), _picker(choice, deterministic)
        width = actor.noise_dim(steps)
        if deterministic:
            noise = keyed_noise(obs, candidates * width)
        else:
            noise = torch.randn((rows, width), generator=source, dtype=like.dtype, device="cpu")
        noise = noise.to(like.device)
        return _choose(actor, critic, moved, noise, steps, candidates, picker, source).cpu()

    def _copy(self, name: str, module: Any, stamp: object) -> Any:  # noqa: ANN401 - as it came
        found = self._copies.get(name)
        if found is None or not found.renew(stamp):
            found = self._copies[name] = _Copy(module, stamp)
        return found.module


# Those that `act` keeps, for as long as there is the actor.
_SNAPSHOTS: WeakKeyDictionary[FlowMapActor, CPUSnapshot] = WeakKeyDictionary()


class _Copy:
    """A module on the CPU, and what it was last seen to be a copy of."""

    def __init__(self, module: nn.Module, stamp: object) -> None:
        # It holds no module: the actor is the key under which all this is kept.
        self._fingerprint = Fingerprint(module)
        self._seen = self._look(stamp)
        self.module: nn.Module | None = None
        self._own: list[Tensor] = []
        # A function put in a method's place is not copied: it would compute where the module is.
        if any(name in vars(part) for part in module.modules() for name in UPDATING):
            return
        with outside():  # or nothing there could use it
            self.module = copy.deepcopy(module).cpu().requires_grad_(False)
        self._own = Fingerprint(self.module).tensors

    def renew(self, stamp: object) -> bool:
        """Makes the copy one of the module as it is now; False if only a new copy can be that."""
        if not self._fingerprint.holds():
            return False
        seen = self._look(stamp)
        if seen != self._seen and self.module is not None:
            with outside():
                _copy_all_(self._own, self._fingerprint.tensors)
            self._seen = seen
        return True

    def _look(self, stamp: object) -> tuple[object, list[int]]:
        tensors = self._fingerprint.tensors
        return stamp, [0 if t.is_inference() else t._version for t in tensors]


@torch.no_grad()
def _copy_all_(target: list[Tensor], source: list[Tensor]) -> None:
    """Copies tensors to the CPU in one transfer per dtype."""
    for dtype in {t.dtype for t in source}:
        pairs = [(a, b) for a, b in zip(target, source, strict=True) if b.dtype == dtype]
        packed = torch.cat([b.reshape(-1) for _, b in pairs]).cpu()
        parts = torch.split(packed, [b.numel() for _, b in pairs])
        for (a, _), part in zip(pairs, parts, strict=True):
            a.copy_(part.view(a.shape))


def _at(action: Tensor, index: Tensor) -> Tensor:
    """Returns of each row's candidates (B, n, A) the one at its index (B,)."""
    # Of operators that every exported graph can have, at any number of rows.
    return action.gather(1, index[:, None, None].expand(-1, 1, action.shape[-1])).squeeze(1)


def _check(critic: QEnsemble | None, candidates: int, choice: Choice | None) -> int:
    """Returns the number of candidates, checked."""
    if critic is not None:
        check_kind("critic", critic, QEnsemble)
    n = as_int(candidates)
    if n is None or not 1 <= n <= _MOST_CANDIDATES:
        raise ValueError(
            f"`candidates` is out of range: got {candidates!r}, expected an integer >= 1, and at "
            f"most {_MOST_CANDIDATES}."
        )
    if critic is None and needs_critic(n, choice):
        raise ValueError(
            f"A choice among candidates needs a critic: got candidates={candidates} and no critic "
            "(behaviour cloning), expected a QEnsemble. Train one, or take candidates=1."
        )
    return n


def _picker(choice: Choice | None, deterministic: bool) -> Choice:
    drawn = deterministic and isinstance(choice, SoftmaxChoice)
    return ArgmaxChoice() if choice is None or drawn else choice


def _choose(
    actor: FlowMapActor,
    critic: QEnsemble | None,
    obs: Tensor,
    noise: Tensor | None,
    steps: int | None,
    candidates: int,
    picker: Choice,
    generator: torch.Generator | None,
) -> Tensor:
    """Returns actions for noise that is given, (B n, D) or (B, n D), or drawn if there is none."""
    if noise is not None:
        noise = noise.reshape(-1, actor.noise_dim(steps))
    if candidates == 1:
        return actor.sample(obs, steps=steps, noise=noise, generator=generator)
    batch = obs.shape[0]
    tiled = obs.repeat_interleave(candidates, 0)
    action = actor.sample(tiled, steps=steps, noise=noise, generator=generator)
    q = None
    with torch.no_grad():
        if needs_critic(candidates, picker):
            assert critic is not None  # `_check` has looked
            q = critic.config.reduce(critic(tiled, action)).view(batch, candidates)
        return picker.take(action.view(batch, candidates, actor.action_dim), q, generator)
