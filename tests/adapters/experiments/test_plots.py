"""Pictures of policies and runs: what is drawn, read back from the figures and the files."""

import io
from pathlib import Path
from typing import Any, ClassVar

import av
import gymnasium
import h5py
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from PIL import Image

from gtp_experiments import (
    Evaluation,
    EvaluationConfig,
    ExperimentError,
    Reference,
    RunConfig,
    RunFolder,
    RunResult,
    drawing,
    film,
    plot_actions,
    plot_advantages,
    plot_curves,
    plot_flow,
    run,
)
from gtp_experiments.__main__ import main
from gtp_experiments.evaluation import ChunkedPolicy
from gtp_policy import FlowMapActorConfig, GTPConfig, GTPLearner, OfflineDataset, QEnsembleConfig
from gtp_policy.chunks import ChunkPlayer
from gtp_policy.errors import DataError
from gtp_policy.samplers import JumpSampler, OdeSampler, Sampler

N = 80


def make_data() -> OfflineDataset:
    rng = np.random.default_rng(0)
    return OfflineDataset.from_arrays(
        obs=rng.normal(size=(N, 3)),
        action=rng.uniform(-2, 2, size=(N, 2)),
        reward=rng.normal(size=N),
        next_obs=rng.normal(size=(N, 3)),
        terminated=np.arange(N) % 20 == 19,
        truncated=np.zeros(N),
        low=[-2.0, -2.0],
        high=[2.0, 2.0],
    )


SMALL = GTPConfig(actor=FlowMapActorConfig(hidden=(16,)), critic=QEnsembleConfig(hidden=(16,)))


def heights(axes: Any) -> np.ndarray:
    """The bars of the first histogram of a panel, as shares of the samples."""
    bars = np.array([patch.get_height() for patch in axes.patches[:40]])
    return bars / bars.sum()


def test_the_histogram_of_the_data_is_the_data() -> None:
    dataset = make_data()
    figure = plot_actions(GTPLearner.from_dataset(dataset, SMALL), dataset, rows=20)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["action 0", "action 1"]
    drawn = dataset.sample(20, generator=torch.Generator().manual_seed(0)).action.numpy() * 2.0
    for i, axes in enumerate(shown):
        expected, _ = np.histogram(drawn[:, i].astype(np.float64), np.linspace(-2, 2, 41))
        np.testing.assert_allclose(heights(axes), expected / 20, atol=1e-9)
        assert len(axes.patches) == 41  # and the policy's outline


def test_of_chunks_the_first_step_is_drawn() -> None:
    """From data of single steps, which become chunks, and from data of chunks alike."""
    dataset = make_data()
    config = SMALL.fit_to_steps(history=2, chunk=3)
    learner = GTPLearner.from_dataset(dataset.with_steps(2, 3), config)
    single, chunks = (
        plot_actions(learner, d, rows=20) for d in (dataset, dataset.with_steps(2, 3))
    )
    drawn = dataset.sample(20, generator=torch.Generator().manual_seed(0)).action.numpy() * 2.0
    for figure in (single, chunks):
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert [axes.get_title() for axes in shown] == ["action 0", "action 1"]
        for i, axes in enumerate(shown):
            expected, _ = np.histogram(drawn[:, i].astype(np.float64), np.linspace(-2, 2, 41))
            np.testing.assert_allclose(heights(axes), expected / 20, atol=1e-9)
    with pytest.raises(DataError, match=r"got \(history, chunk\) = \(2, 2\), expected \(2, 3\)"):
        plot_actions(learner, dataset.with_steps(2, 2))


@pytest.mark.parametrize(
    "sampler",
    [
        JumpSampler(),
        JumpSampler(gamma=0.5),
        JumpSampler(gamma=1.0),
        OdeSampler(method="euler"),
        OdeSampler(method="heun"),
    ],
    ids=str,
)
def test_the_flow_ends_in_what_the_policy_does(sampler: Sampler) -> None:
    dataset = make_data()
    config = SMALL.replace(actor=SMALL.actor.replace(sampler=sampler))
    learner = GTPLearner.from_dataset(dataset, config)
    obs = dataset.transitions.obs[0]
    figure = plot_flow(learner, obs.numpy(), samples=6, steps=3, seed=1)
    wide = learner.actor.noise_dim(3)
    noise = torch.randn(6, wide, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        actions = learner.target_actor.sample(obs.expand(6, -1), steps=3, noise=noise)
    for i, axes in enumerate(figure.axes[:2]):
        lines = axes.lines[:6]
        assert all(len(line.get_xdata()) == 4 for line in lines)
        ends = np.array([line.get_ydata()[-1] for line in lines])
        np.testing.assert_allclose(ends.clip(-1, 1), actions[:, i], atol=1e-5)
        assert lines[0].get_xdata()[-1] == 0.0
    with pytest.raises(DataError, match=r"`obs` has the wrong shape: got \(2,\), expected \(3,\)"):
        plot_flow(learner, [0.0, 0.0])


def test_weights_are_those_of_the_episode() -> None:
    dataset = make_data()
    learner = GTPLearner.from_dataset(dataset, SMALL)
    figure = plot_advantages(learner, dataset, episode=2)
    advantage, weight, reward = (axes.lines[0].get_ydata() for axes in figure.axes)
    np.testing.assert_array_equal(reward, dataset.transitions.reward[40:60])
    np.testing.assert_allclose(weight, learner.weighter(torch.from_numpy(advantage)), rtol=1e-6)
    assert (weight >= 1).all()
    with pytest.raises(ExperimentError, match="no such episode: got 9, expected 0 to 3"):
        plot_advantages(learner, dataset, episode=9)


def constant(obs: np.ndarray) -> np.ndarray:
    return np.full((len(obs), 1), 0.5, np.float32)


class Painted(gymnasium.Env[Any, Any]):
    """Counts steps, and renders the count as a shade; of an odd width, which MP4 cannot have."""

    observation_space = Box(-9, 9, (3,), np.float32)
    action_space = Box(-2, 2, (1,), np.float32)
    actions: ClassVar[list[float]] = []

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.metadata = render_mode, {"render_modes": ["rgb_array"]}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.actions.append(float(action[0]))
        self.count += 1
        return np.zeros(3, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return np.full((20, 31, 3), 40 * self.count, np.uint8)


@pytest.fixture
def pendulum() -> OfflineDataset:
    return OfflineDataset.from_arrays(
        obs=np.zeros((1, 3)), action=[[0.0]], terminated=[1], truncated=[0], low=[-2.0], high=[2.0]
    )


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_a_film_shows_every_step(pendulum: OfflineDataset, tmp_path: Path, ending: str) -> None:
    path = film(constant, pendulum, f"{__name__}:Painted", tmp_path / f"a.{ending}", max_steps=5)
    if ending == "gif":
        with Image.open(path) as image:
            assert image.n_frames == 6
            assert image.size == (31, 20)
    else:
        with av.open(str(path)) as container:
            shades = [int(frame.to_ndarray(format="gray").mean()) for frame in container.decode()]
        assert len(shades) == 6
        assert shades == sorted(set(shades))  # each step is brighter than the one before


def test_a_film_of_chunks_plays_them_to_their_end(pendulum: OfflineDataset, tmp_path: Path) -> None:
    """And begins anew with every film."""
    chunk = torch.tensor([[0.1, 0.2, 0.3]])
    player = ChunkPlayer(lambda obs: chunk.expand(len(obs), -1), chunk=3)
    policy = ChunkedPolicy(player, lambda action: action)
    for _ in range(2):
        Painted.actions.clear()
        film(policy, pendulum, f"{__name__}:Painted", tmp_path / "a.gif", max_steps=4)
        assert [round(a, 1) for a in Painted.actions] == [0.1, 0.2, 0.3, 0.1]


def test_a_film_needs_pictures_and_a_known_ending(pendulum: OfflineDataset, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"got '\.avi', expected \.gif or \.mp4"):
        film(constant, pendulum, "Pendulum-v1", tmp_path / "a.avi")


def test_curves_have_one_scale() -> None:
    """Returns, where one of the runs has no reference to score by."""
    plain = RunResult(
        method="gtp",
        dataset="a/b-v0",
        group="0",
        seed=0,
        updates=1,
        status="finished",
        evaluations=(Evaluation(update=1, returns=(50.0,), lengths=(3,)),),
        ms_per_update=1.0,
        data_sha256="",
        config={},
        provenance={},
    )
    scored = plain.replace(reference=Reference(min=0.0, max=200.0, source="by hand"))
    for group, label, heights in (
        ([scored, scored], "score", [25.0]),
        ([plain, scored], "return", [50.0]),
    ):
        (panel,) = plot_curves({f"{i} $_$": [run] for i, run in enumerate(group)}).axes
        assert panel.get_ylabel() == label
        panel.figure.savefig(io.BytesIO())  # where a formula that is none is an error
        assert [line.get_ydata().tolist() for line in panel.lines] == [heights, heights]


def test_the_command_draws_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["observations"], file["actions"] = (
            rng.normal(size=(90, 3)),
            rng.uniform(-2, 2, (90, 1)),
        )
        file["rewards"], file["terminals"] = -np.ones(90), np.zeros(90, bool)
        file["timeouts"] = np.arange(90) % 30 == 29
    config = RunConfig(
        dataset=str(tmp_path / "a.hdf5"),
        updates=2,
        policy=SMALL,
        evaluation=EvaluationConfig(environment="Pendulum-v1", episodes=1, max_steps=3, every=1),
    )
    results = [run(config.replace(seed=s), tmp_path / "runs") for s in (0, 1)]
    folders = sorted(str(p) for p in (tmp_path / "runs").iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "precious.txt").write_text("a file of the user's")
    (tmp_path / "out" / "learning.png").symlink_to(tmp_path / "precious.txt")
    assert main(["plot", *folders, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "precious.txt").read_text() == "a file of the user's"
    names = capsys.readouterr().out.split()
    assert len(names) == 7
    for name in names:
        with Image.open(name) as image:
            assert image.width > 300
    with monkeypatch.context() as m:  # an episode is as long as those of the run
        cut = []
        m.setattr(drawing, "film", lambda *a, max_steps: cut.append(max_steps) or a[-1])
        assert main(["plot", folders[0], "--out", str(tmp_path / "out"), "--rollout", "gif"]) == 0
        assert cut == [3]
        capsys.readouterr()
    # What a shell's runs/* names as well: an unfinished run, a file, a folder of something else.
    unfinished = RunFolder(tmp_path / "runs", config.replace(seed=2), data_sha256="00").path
    others = [str(unfinished), str(tmp_path / "a.hdf5"), str(tmp_path / "out")]
    for command in (
        ["plot", "--out", str(tmp_path / "out"), *others, folders[0]],
        ["evaluate", "--steps", "1", "--episodes", "1", *others, folders[0]],
    ):
        assert main(command) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == (4 if command[0] == "plot" else 5)
        for line, other in zip(printed.err.splitlines(), others, strict=True):
            assert line.startswith(f"left out: {other} has no finished run")
        assert main([*command, str(tmp_path / "typo")]) == 2
        assert "typo has no finished run" in capsys.readouterr().err
    (panel,) = plot_curves({"gtp": [r for r in results if r is not None]}).axes
    np.testing.assert_array_equal(panel.lines[0].get_xdata(), [1, 2])
    expected = np.mean([[e.mean for e in r.evaluations] for r in results if r is not None], 0)
    np.testing.assert_allclose(panel.lines[0].get_ydata(), expected)
    with pytest.raises(ExperimentError, match="nothing to draw"):
        plot_curves({})
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "has no finished run" in capsys.readouterr().err
