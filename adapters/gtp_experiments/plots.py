"""Looking at a policy: its actions, its flow, its weights, its learning, and a rollout as a film.

Figures are matplotlib's, made without its global state: save them with ``figure.savefig(path)``.
matplotlib and PyAV (extra ``plots``) are imported on first use.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gtp_datasets.spaces import members_of
from gtp_experiments.environments import check_env, flat_observations, make_env
from gtp_experiments.errors import ExperimentError
from gtp_experiments.evaluation import Act, ChunkedPolicy, check_units
from gtp_experiments.results import RunResult
from gtp_policy import FlowMapActor, GTPLearner, OfflineDataset
from gtp_policy.errors import DataError, MissingDependencyError, how_to_install
from gtp_policy.files import expanded, replacing
from gtp_policy.rewards import episode_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DATA, POLICY = "0.6", "tab:blue"


def plot_actions(
    learner: GTPLearner, dataset: OfflineDataset, *, rows: int = 2000, seed: int = 0
) -> "Figure":
    """Draws the policy's actions against the data's, a histogram per dimension.

    Both are for the same observations, so that what differs is the policy. Of chunks, the first
    step is drawn.

    Args:
        learner: The learner; its target actor acts, with sampled actions.
        dataset: The data.
        rows: Observations that are drawn from it, at most.
        seed: Of the observations and of the noise.

    Returns:
        The figure; axes are in the units of the environment.

    Raises:
        DataError: If the data has other histories, chunks or units than the policy.

    Example:
        >>> from gtp_experiments import plot_actions
        >>> from gtp_policy import GTPConfig, GTPLearner, OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], terminated=[1, 1], truncated=[0, 0],
        ...     low=[-1.0], high=[1.0])
        >>> learner = GTPLearner.from_dataset(dataset, GTPConfig(critic=None))
        >>> plot_actions(learner, dataset).axes[0].get_title()
        'action 0'
    """
    check_units(learner, dataset)
    actor = learner.target_actor.config
    dataset = dataset.with_steps(actor.history, actor.chunk)
    generator = torch.Generator(dataset.device).manual_seed(seed)
    batch = dataset.sample(min(rows, len(dataset)), generator=generator)
    drawn = learner.act(batch.obs, generator=torch.Generator(learner.device).manual_seed(seed))
    scaler = dataset.action_scaler
    own, theirs = (
        scaler.to_box(chunks[:, : scaler.action_dim].cpu().numpy().astype(np.float64))
        for chunks in (drawn, batch.action)
    )
    figure, axes = _grid(scaler.action_dim, "actions of the policy against those of the data")
    for i, one in enumerate(axes):
        bins = np.linspace(scaler.low[i], scaler.high[i], 41).tolist()
        one.hist(theirs[:, i], bins, color=DATA, density=True, label="data")
        one.hist(
            own[:, i], bins, color=POLICY, density=True, histtype="step", lw=1.5, label="policy"
        )
        one.set_title(f"action {i}")
        one.set_yticks([])
    axes[0].legend()
    return figure


def plot_flow(
    learner: GTPLearner,
    obs: npt.ArrayLike,
    *,
    samples: int = 64,
    steps: int | None = None,
    seed: int = 0,
) -> "Figure":
    r"""Draws how noise becomes actions at one observation, jump by jump, a panel per dimension.

    The axis of times is :math:`t / (1 + t)` of :math:`x + t z`, and states are divided by 1 + t:
    the straight path between action and noise, whichever path the policy has.

    Args:
        learner: The learner; its target actor is drawn.
        obs: One observation as a vector, shape (O,).
        samples: Noises to start from.
        steps: K; default the actor's.
        seed: Of the noises.

    Returns:
        The figure; actions are in [-1, 1].

    Raises:
        DataError: If it is no vector of the actor's length.

    Example:
        >>> from gtp_experiments import plot_flow
        >>> from gtp_policy import GTPConfig, GTPLearner
        >>> learner = GTPLearner.build(3, 2, GTPConfig(critic=None))
        >>> len(plot_flow(learner, [0.0, 0.0, 0.0], samples=4).axes)
        2
    """
    actor = learner.target_actor
    one = torch.as_tensor(np.asarray(obs), dtype=actor.dtype, device=actor.device)
    if one.shape != (actor.obs_dim,):
        raise DataError(
            f"`obs` has the wrong shape: got {tuple(one.shape)}, expected ({actor.obs_dim},), one "
            "observation as a vector."
        )
    generator = torch.Generator(actor.device).manual_seed(seed)
    times = actor.times.grid(steps or actor.config.steps).to(one)
    noise = torch.randn(
        samples,
        actor.noise_dim(steps),
        generator=generator,
        device=one.device,
        dtype=one.dtype,
    )
    with torch.no_grad():
        path = _states(actor, one.expand(samples, -1), noise, times)
    straight = actor.times.path == "linear"
    # Of x + t z: t / (1 + t) is the share of noise in (x + t z) / (1 + t).
    share = times if straight else times / (1 + times)
    states = path if straight else path / (1 + times)[:, None, None]
    states = states * actor.action_scale + actor.action_mean * (1 - share)[:, None, None]
    at, lines = share.cpu().numpy(), states.cpu().numpy()
    figure, axes = _grid(actor.action_dim, f"from noise to action in {len(times) - 1} jumps")
    for i, panel in enumerate(axes):
        panel.plot(at, lines[:, :, i], color=POLICY, lw=0.7, alpha=0.5, marker=".", ms=3)
        for bound in (-1, 1):
            panel.axhline(bound, color=DATA, lw=0.8, ls="--")
        panel.set(title=f"action {i}", xlabel="share of noise", xlim=(1.02, -0.02))
    return figure


def _states(actor: FlowMapActor, obs: Tensor, noise: Tensor, grid: Tensor) -> Tensor:
    """Returns where the actor's own sampler is at each time, shape (K + 1, B, A).

    A solver that corrects itself comes to a time twice: the second state is the one it goes on
    from.
    """
    states: dict[float, Tensor] = {}

    def recorded(jump: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(obs: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            states[float(t[0])] = x
            return jump(obs, x, t, s)

        return call

    jump, endpoint = recorded(actor), recorded(actor.endpoint)
    last = actor.config.sampler.follow(jump, endpoint, obs, noise, grid, actor.times.path)
    return torch.stack([*(states[float(t)] for t in grid[:-1]), last])


def plot_advantages(learner: GTPLearner, dataset: OfflineDataset, *, episode: int = 0) -> "Figure":
    """Draws advantages, weights and rewards along one episode of the data.

    Args:
        learner: The learner, with a critic.
        dataset: The data.
        episode: Its number in it, from 0.

    Returns:
        The figure.

    Raises:
        DataError: If the data has other units than the policy.
        ExperimentError: If there is no such episode.
        ValueError: If the learner has no critic.

    Example:
        >>> from gtp_experiments import plot_advantages
        >>> from gtp_policy import GTPLearner, OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=[[0.0], [2.0]], action=[[0.8], [-0.8]], reward=[0.0, 1.0],
        ...     next_obs=[[2.0], [0.0]], terminated=[0, 1], truncated=[0, 0],
        ...     low=[-1.0], high=[1.0])
        >>> learner = GTPLearner.from_dataset(dataset)
        >>> [axes.get_ylabel() for axes in plot_advantages(learner, dataset).axes]
        ['advantage', 'weight', 'reward']
    """
    check_units(learner, dataset)
    numbers = episode_numbers(dataset.ends)
    rows = np.flatnonzero(numbers == episode)
    if not len(rows):
        raise ExperimentError(
            f"There is no such episode: got {episode}, expected 0 to {numbers[-1]}."
        )
    batch = dataset.rows(int(rows[0]), int(rows[-1]) + 1)
    generator = torch.Generator(learner.device).manual_seed(0)
    if learner.config.advantage == "td":
        advantage = learner.td_advantage(batch, generator=generator)
    else:
        advantage = learner.advantage(batch.obs, batch.action, generator=generator)
    columns = {
        "advantage": advantage,
        "weight": learner.weighter(advantage),
        "reward": batch.reward,
    }
    figure, axes = _grid(3, f"episode {episode} of {dataset.source}", across=1)
    for panel, (name, values) in zip(axes, columns.items(), strict=True):
        panel.plot(values.cpu().numpy(), color=POLICY, lw=1.2)
        panel.axhline(1.0 if name == "weight" else 0.0, color=DATA, lw=0.8)
        panel.set_ylabel(name)
    axes[-1].set_xlabel("step")
    return figure


def plot_curves(results: Mapping[str, Sequence[RunResult]]) -> "Figure":
    """Draws learning curves of runs side by side: their mean, and a band of their extremes.

    Args:
        results: Runs by what the legend calls them; those of one name are seeds of one experiment.

    Returns:
        The figure; scores where all runs have a scale, else returns.

    Raises:
        ExperimentError: If no run has an evaluation.

    Example:
        >>> from gtp_experiments import Evaluation, RunResult, plot_curves
        >>> evaluations = [Evaluation(update=u, returns=(float(u),), lengths=(3,)) for u in (1, 2)]
        >>> result = RunResult(
        ...     method="gtp", dataset="a/b-v0", group="0", seed=0, updates=2, status="finished",
        ...     evaluations=evaluations, ms_per_update=1.0, data_sha256="", config={},
        ...     provenance={})
        >>> plot_curves({"gtp": [result]}).axes[0].get_ylabel()
        'return'
    """
    runs = [run for group in results.values() for run in group if run.evaluations]
    if not runs:
        raise ExperimentError(
            f"There is nothing to draw: got {sum(map(len, results.values()))} runs and no "
            "evaluation, expected at least one. Run them first."
        )
    scored = all(run.reference is not None for run in runs)  # one axis, one scale
    figure, (panel,) = _grid(1, "learning")
    for name, group in results.items():
        by_update: dict[int, list[float]] = {}
        for run in group:
            for evaluation in run.evaluations:
                value = run.score(evaluation) if scored else evaluation.mean
                by_update.setdefault(evaluation.update, []).append(float(value or 0.0))
        if not by_update:
            continue
        at = sorted(by_update)
        (line,) = panel.plot(
            at,
            [np.mean(by_update[u]) for u in at],
            label=_plain(f"{name} ({len(group)})"),
            marker=".",
        )
        low, high = ([end(by_update[u]) for u in at] for end in (min, max))
        panel.fill_between(at, low, high, color=line.get_color(), alpha=0.2, lw=0)
    panel.set(xlabel="update", ylabel="score" if scored else "return")
    panel.legend()
    return figure


def film(
    act: Act,
    dataset: OfflineDataset,
    environment: str,
    path: str | Path,
    *,
    seed: int = 0,
    max_steps: int = 1000,
) -> Path:
    """Plays one episode and writes what the environment renders, as a GIF or an MP4.

    Frames are collected by gymnasium's own wrapper, ``RenderCollection``.

    Args:
        act: The policy, e.g. of `policy_of`; of chunks too.
        dataset: What it was trained on; knows its units.
        environment: As for `make_env`, an id of gymnasium that renders to ``rgb_array``.
        path: Where to write; ends in ``.gif`` or ``.mp4``.
        seed: Of the episode's start.
        max_steps: Cuts longer episodes.

    Returns:
        The path.

    Raises:
        ExperimentError: If the environment does not fit or renders nothing, or the ending is
            unknown.

    Example:
        >>> import numpy as np
        >>> from gtp_experiments import film
        >>> from gtp_policy import OfflineDataset
        >>> dataset = OfflineDataset.from_arrays(
        ...     obs=np.zeros((1, 3)), action=[[0.0]], terminated=[1], truncated=[0],
        ...     low=[-2.0], high=[2.0])
        >>> film(lambda obs: obs[:, :1], dataset, "Pendulum-v1", "a.avi")
        Traceback (most recent call last):
        ...
        gtp_experiments.errors.ExperimentError: The film's ending is unknown: got '.avi', expected \
.gif or .mp4.
    """
    from gymnasium.error import DependencyNotInstalled
    from gymnasium.wrappers import RenderCollection

    path = expanded(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ExperimentError(
            f"The film's ending is unknown: got {path.suffix!r}, expected .gif or .mp4."
        )
    env = make_env(environment, render_mode="rgb_array")
    try:
        check_env(env, dataset, environment)
        if env.render_mode != "rgb_array":
            raise ExperimentError(
                f"{environment} renders no pictures: got render_mode={env.render_mode!r}, expected "
                "'rgb_array'. Name an environment that does."
            )
        fps = int(env.metadata.get("render_fps", 30))
        env = RenderCollection(env, pop_frames=True)
        obs, done = env.reset(seed=seed)[0], False
        for step in range(max_steps):
            if isinstance(act, ChunkedPolicy):
                act.expect([0], [step == 0])
            action = act(flat_observations([obs], dataset))[0]
            obs, _, ended, cut, _ = env.step(members_of(env.action_space, action))
            done = ended or cut
            if done:
                break
        frames = np.stack([np.asarray(frame, np.uint8) for frame in env.render()])
    except DependencyNotInstalled as error:
        raise MissingDependencyError(
            f"{environment} cannot be filmed: got `{error}`, expected what it draws with. Install "
            "that, or leave --rollout out."
        ) from error
    finally:
        env.close()
    with replacing(path, path.suffix) as temporary:  # and not what a link of its name leads to
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, frames, fps)
    return path


def _write_gif(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    from PIL import Image

    # Players of GIF know no more than 50 frames per second.
    skip = max(1, math.ceil(fps / 50))
    images = [Image.fromarray(frame) for frame in frames[::skip]]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=1000 * skip // fps, loop=0
    )


def _write_mp4(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    try:
        import av
    except ImportError as error:
        raise _missing("PyAV", error) from error
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps)
        # The colours of four neighbours are stored together: of an odd side, the last is left out.
        stream.height, stream.width = (side - side % 2 for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        for frame in frames[:, : stream.height, : stream.width]:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _missing(what: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(f"Plots need {what}: got `{error}`. {how_to_install('plots')}")


def _grid(panels: int, title: str, across: int = 4) -> "tuple[Figure, list[Axes]]":
    """Returns a figure with so many panels, and the panels."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise _missing("matplotlib", error) from error
    columns = min(panels, across)
    rows = math.ceil(panels / columns)
    width, height = (7.0, 2.0) if across == 1 else (3.2 if panels > 1 else 6.0, 3.0)
    figure = Figure(figsize=(width * columns, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=across == 1).ravel().tolist()
    for unused in axes[panels:]:
        unused.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure, axes[:panels]


def _plain(text: str) -> str:
    """Returns a text that matplotlib shows as it is: between two dollars it reads a formula."""
    return text.replace("$", r"\$")
