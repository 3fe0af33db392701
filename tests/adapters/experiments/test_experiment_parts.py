"""Configs, data, environments, evaluation, statistics and tables of experiments."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer
from pydantic import ValidationError

from gtp_datasets import report
from gtp_experiments import (
    PAPER,
    Evaluation,
    EvaluationConfig,
    Evaluator,
    ExperimentError,
    Reference,
    RunConfig,
    RunResult,
    check_env,
    data_hash,
    difference_interval,
    environment_of,
    evaluate,
    fit_of_actions,
    flat_observations,
    load_data,
    make_env,
    mean_interval,
    mountain_car_logs,
    plot_actions,
    plot_advantages,
    policy_of,
    rows,
    spread,
    table,
)
from gtp_experiments.cli import main
from gtp_experiments.evaluation import _run_episodes
from gtp_experiments.provenance import _git_revision
from gtp_policy import (
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    OfflineDataset,
    act,
)
from gtp_policy.acting import ArgmaxChoice, SoftmaxChoice
from gtp_policy.errors import DataError, NonFiniteError
from gtp_policy.rewards import LinearReward

Make = Callable[..., RunConfig]


def dataset_of(reward: list[float], **fields: Any) -> OfflineDataset:
    n = len(reward)
    defaults: dict[str, Any] = {
        "obs": np.zeros((n, 2)),
        "action": np.zeros((n, 1)),
        "next_obs": np.ones((n, 2)),
        "terminated": np.arange(n) % 2,
        "truncated": np.zeros(n),
        "low": [-1.0],
        "high": [1.0],
    }
    return OfflineDataset.from_arrays(**{**defaults, "reward": reward, **fields})


# --- configs


def test_seed_and_length_are_those_of_the_run() -> None:
    policy = GTPConfig(learner=GTPLearnerConfig(seed=7, total_updates=3))
    config = RunConfig(dataset="a/b-v0", updates=50, seed=2, policy=policy)
    assert (config.policy.learner.seed, config.policy.learner.total_updates) == (2, 50)
    assert config.replace(seed=5).policy.learner.seed == 5
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_a_name_stands_for_every_choice_but_only_the_seed_leaves_the_group() -> None:
    config = RunConfig(dataset="a/b-v0", updates=50)
    assert config.replace(seed=1).group == config.group
    assert config.replace(seed=1).name != config.name
    others = [
        config.replace(gamma=0.9),
        config.replace(reward=LinearReward(subtract=1.0)),
        config.replace(evaluation=EvaluationConfig(candidates=2)),
        config.replace(policy=GTPConfig(critic=None)),
        config.replace(best_episodes=0.5),
        config.replace(n_step=3),
    ]
    assert len({c.group for c in (config, *others)}) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "chess"}, "task='chess' must start with one of halfcheetah"),
        ({"task": "hopperx-medium"}, "must start with"),
        ({"updates": 0}, "updates"),
        ({"seed": -1}, "seed"),
        ({"dataset": ""}, "dataset"),
        ({"reward": {"kind": "square"}}, "reward"),
        ({"policy": {"critic": None}, "evaluation": {"candidates": 2}}, "needs a critic"),
        ({"typo": 1}, "typo"),
    ],
)
def test_wrong_configs_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig(**{"dataset": "a/b-v0", "updates": 5, **fields})


@pytest.mark.parametrize(
    ("task", "source"),
    [("antmaze-large-play", "D4RL antmaze"), ("maze2d-umaze-v1", "D4RL maze2d-umaze")],
)
def test_a_task_brings_its_reference(task: str, source: str) -> None:
    reference = RunConfig(dataset="a/b-v0", updates=5, task=task).reference
    assert reference is not None
    assert reference.source == source


# --- data


def test_the_hash_sees_every_field(make_config: Make) -> None:
    n = 4
    base = data_hash(dataset_of([0.0] * n))
    changed = [
        dataset_of([0.0, 0.0, 0.0, 1.0]),
        dataset_of([0.0] * n, obs=np.ones((n, 2))),
        dataset_of([0.0] * n, next_obs=np.zeros((n, 2))),
        dataset_of([0.0] * n, action=np.ones((n, 1))),
        dataset_of([0.0] * n, gamma=0.5),
        dataset_of([0.0] * n, truncated=np.array([1, 0, 0, 0])),
        dataset_of([0.0] * (n - 2)),
    ]
    assert len({base, *(data_hash(d) for d in changed)}) == 8
    # A log that goes on where an episode terminates is other data; what the flags say adds nothing.
    columns = {"obs": np.zeros((n, 2)), "action": np.zeros((n, 1)), "reward": np.zeros(n)}
    columns |= {"next_obs": np.ones((n, 2)), "low": -1.0, "high": 1.0}
    flags = {"terminated": np.arange(n) == 1, "truncated": np.arange(n) == 3}
    default, said, longer = (
        data_hash(OfflineDataset.from_arrays(**columns, **flags, ends=ends))
        for ends in (None, np.arange(n) % 2 == 1, np.arange(n) == 3)
    )
    assert default == said == "f1e54a9a8654aa6882c5c5c7bd4de232081da0a3c161bc7356e060b1f886da1e"
    assert longer != default
    raw = load_data(make_config())
    shifted = load_data(make_config(reward=LinearReward(subtract=1.0)))
    assert raw.sha256 == shifted.sha256  # of the data, not of what was made of them
    difference = raw.dataset.transitions.reward - shifted.dataset.transitions.reward
    torch.testing.assert_close(difference, torch.ones_like(difference))


def write_two_episodes(path: Path, rewards: list[float]) -> None:
    """Writes an episode of one transition and one of three; observations are their numbers."""
    with h5py.File(path, "w") as file:
        file["observations"] = file["next_observations"] = np.arange(4.0)[:, None]
        file["actions"] = np.array([-1.0, 1.0, 0.0, 0.0])[:, None]
        file["rewards"] = np.array(rewards)
        file["terminals"] = np.array([1, 0, 0, 1], bool)
        file["timeouts"] = np.zeros(4, bool)


def test_the_best_episodes_are_chosen_by_the_rewards_of_the_data(tmp_path: Path) -> None:
    # Returns 1 and 1.5; with the transformed rewards they would be 0 and -1.5.
    write_two_episodes(tmp_path / "two.hdf5", [1.0, 0.5, 0.5, 0.5])
    config = RunConfig(
        dataset=str(tmp_path / "two.hdf5"),
        updates=1,
        best_episodes=0.5,
        reward=LinearReward(subtract=1.0),
    )
    best, whole = load_data(config), load_data(config.replace(best_episodes=None))
    assert best.sha256 == whole.sha256
    assert best.dataset.transitions.obs.flatten().tolist() == [1, 2, 3]
    assert best.dataset.transitions.reward.tolist() == [-0.5, -0.5, -0.5]
    assert len(whole.dataset) == 4


def test_episodes_are_weighted_by_the_rewards_of_the_data(tmp_path: Path) -> None:
    # Returns 1 and 3; with the transformed rewards they would be 0 and 0.
    write_two_episodes(tmp_path / "two.hdf5", [1.0, 1.0, 1.0, 1.0])
    config = RunConfig(
        dataset=str(tmp_path / "two.hdf5"),
        updates=1,
        return_weighting=5.0,
        reward=LinearReward(subtract=1.0),
    )
    weighted, whole = load_data(config), load_data(config.replace(return_weighting=0.0))
    assert weighted.sha256 == whole.sha256
    assert weighted.dataset.transitions.obs.flatten().tolist() == [1, 2, 3]
    assert len(whole.dataset) == 4


def test_returns_of_several_steps_follow_transformed_rewards(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "one.hdf5", "w") as file:
        file["observations"] = np.arange(3.0)[:, None]
        file["next_observations"] = np.arange(1.0, 4.0)[:, None]
        file["actions"] = np.array([-1.0, 1.0, 0.5])[:, None]
        file["rewards"] = np.array([1.0, 2.0, 3.0])
        file["terminals"] = np.array([0, 0, 1], bool)
        file["timeouts"] = np.zeros(3, bool)
    config = RunConfig(
        dataset=str(tmp_path / "one.hdf5"),
        updates=1,
        gamma=0.5,
        n_step=2,
        reward=LinearReward(subtract=1.0),
        policy=GTPConfig(learner=GTPLearnerConfig(critic_penalty=0.1)),
    )
    batch = load_data(config).dataset.transitions
    assert batch.reward.tolist() == [0.5, 2.0, 2.0]
    assert batch.discount.tolist() == [0.25, 0.0, 0.0]
    assert batch.next_action is not None
    assert batch.next_action.flatten().tolist() == [0.5, 0.5, 0.5]
    plain = load_data(config.replace(policy=GTPConfig(), n_step=1))
    assert plain.dataset.transitions.next_action is None
    assert plain.sha256 == load_data(config).sha256
    # What the sums reach has its history, as in dataset.with_history(2).with_n_step(2).
    actor = FlowMapActorConfig(history=2)
    batch = load_data(config.replace(policy=GTPConfig(actor=actor))).dataset.transitions
    assert batch.obs.tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 2.0]]
    assert batch.next_obs.tolist() == [[1.0, 2.0], [2.0, 3.0], [2.0, 3.0]]
    assert batch.reward.tolist() == [0.5, 2.0, 2.0]


# --- environments


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nowhere-v7", "NameNotFound"),
        ("no_such_module:make", "ModuleNotFoundError"),
        ("line_world:nothing", "NameNotFound"),
    ],
)
def test_an_environment_that_cannot_be_built_is_named(name: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=f"{name!r} cannot be built: got {message}"):
        make_env(name)


def test_an_environment_by_module_and_id() -> None:
    assert type(make_env("line_world:make")).__name__ == "Line"
    assert make_env("gymnasium.envs.classic_control:Pendulum-v1").spec == gymnasium.spec(
        "Pendulum-v1"
    )


def test_the_dataset_lends_a_registered_id_and_nothing_else(
    make_minari: Callable[..., minari.MinariDataset], minari_root: Path
) -> None:
    episode = EpisodeBuffer(
        observations=np.zeros((3, 3)),
        actions=np.zeros((2, 2)),
        rewards=[0.0, 0.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    make_minari(episode)
    config = RunConfig(dataset="toy/set-v0", updates=1)
    with pytest.raises(ExperimentError, match="does not say where to evaluate"):
        environment_of(config)
    path = minari_root / "toy/set-v0/data/metadata.json"

    def claim(**changes: Any) -> None:
        spec = json.loads(gymnasium.spec("Pendulum-v1").to_json()) | changes
        path.write_text(json.dumps(json.loads(path.read_text()) | {"env_spec": json.dumps(spec)}))

    claim(id="Pendulum-v1", entry_point="line_world:make", kwargs={})
    assert environment_of(config) == "Pendulum-v1"
    claim(id="Pendulum-v1", entry_point="line_world:make", kwargs={"g": 1.0})
    with pytest.warns(UserWarning, match="was made in Pendulum-v1 with"):
        environment_of(config)
    claim(id="this:Stranger-v0", entry_point="this:s", kwargs={})
    with pytest.raises(ExperimentError, match=r"not registered: got 'this:Stranger-v0'"):
        environment_of(config)
    assert "this" not in sys.modules


def test_an_environment_of_other_spaces_is_refused() -> None:
    with pytest.raises(ExperimentError, match="Observations of Pendulum-v1 do not fit"):
        check_env(make_env("Pendulum-v1"), dataset_of([0.0]), "Pendulum-v1")
    three = dataset_of([0.0], obs=np.zeros((1, 3)), next_obs=np.zeros((1, 3)))
    with pytest.raises(ExperimentError, match="Actions of Pendulum-v1 do not fit"):
        check_env(make_env("Pendulum-v1"), three, "Pendulum-v1")


# --- evaluation


def proportional(obs: np.ndarray) -> np.ndarray:
    return np.clip(-0.3 * obs[:, :1], -1, 1).astype(np.float32)


def by_hand(act: Callable[[np.ndarray], np.ndarray], seeds: list[int]) -> list[tuple[float, int]]:
    """Runs one episode after the other in a separate environment."""
    done = []
    for seed in seeds:
        env, total, steps, ended = make_env("line_world:make"), 0.0, 0, False
        obs, _ = env.reset(seed=seed)
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs[None].astype(np.float32))[0])
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        done.append((total, steps))
    return done


@pytest.mark.parametrize("parallel", [1, 3, 20])
def test_episodes_are_those_of_one_environment_after_the_other(
    make_config: Make, parallel: int
) -> None:
    config = make_config(seed=4, evaluation={"episodes": 7, "parallel": parallel, "seed": 9})
    dataset = load_data(config).dataset
    evaluator = Evaluator(config, dataset)
    seen = evaluator.run(proportional, update=123)
    evaluator.close()
    seeds = np.random.SeedSequence([9, 4, 123]).generate_state(7).tolist()
    assert list(zip(seen.returns, seen.lengths, strict=True)) == by_hand(proportional, seeds)
    assert seen.success is not None
    assert all(seen.success)


SHARED: list[gymnasium.Env[Any, Any]] = []


def one_of_two() -> gymnasium.Env[Any, Any]:
    while len(SHARED) < 2:
        SHARED.append(make_env("line_world:make"))
    SHARED.reverse()
    return gymnasium.wrappers.TimeLimit(SHARED[0], 100)


def test_an_environment_that_is_open_already_runs_one_episode_at_a_time(make_config: Make) -> None:
    where = f"{__name__}:one_of_two"
    config = make_config(evaluation={"environment": where, "episodes": 7, "parallel": 7})
    dataset = load_data(config).dataset
    seen = Evaluator(config, dataset).run(proportional, 0)
    seeds = np.random.SeedSequence([0, 0, 0]).generate_state(7).tolist()
    assert list(zip(seen.returns, seen.lengths, strict=True)) == by_hand(proportional, seeds)
    learner = GTPLearner.from_dataset(dataset)
    apart, shared = (
        evaluate(learner, dataset, name, episodes=4, deterministic=True)
        for name in ("line_world:make", where)
    )
    assert shared.returns == pytest.approx(apart.returns, rel=1e-4)  # batches of other sizes


def test_starts_depend_on_seed_and_update(make_config: Make) -> None:
    def returns(update: int, **fields: Any) -> tuple[float, ...]:
        config = make_config(**fields)
        return Evaluator(config, load_data(config).dataset).run(proportional, update).returns

    again, base = returns(10), returns(10)
    assert again == base
    assert len({base, returns(11), returns(10, seed=1), returns(10, evaluation={"seed": 1})}) == 4


def test_episodes_can_be_cut(make_config: Make) -> None:
    config = make_config(evaluation={"max_steps": 3})
    seen = Evaluator(config, load_data(config).dataset).run(proportional, 0)
    assert seen.lengths == (3,) * 5


def test_actions_that_are_not_finite_are_divergence(make_config: Make) -> None:
    config = make_config()
    evaluator = Evaluator(config, load_data(config).dataset)
    with pytest.raises(NonFiniteError, match="after 7 updates: got nan"):
        evaluator.run(lambda obs: np.full((len(obs), 1), np.nan), 7)


def test_parts_of_an_observation_are_joined_in_the_order_of_the_data(make_config: Make) -> None:
    from gtp_policy import ObservationLayout

    dataset = load_data(make_config()).dataset
    dataset.layout = ObservationLayout({"b": (1,), "a": (1,)})
    rows = [
        {"a": np.array([1.0]), "b": np.array([2.0])},
        {"a": np.array([3.0]), "b": np.array([4.0])},
    ]
    assert flat_observations(rows, dataset).tolist() == [[2.0, 1.0], [4.0, 3.0]]


def test_candidates_are_chosen_as_the_evaluation_says(make_config: Make) -> None:
    config = make_config()
    dataset = load_data(config).dataset
    learner = GTPLearner.from_dataset(dataset, config.policy)
    obs = np.zeros((50, 2), np.float32)
    for choice in (ArgmaxChoice(), SoftmaxChoice(temperature=10.0)):
        taken = policy_of(learner, dataset, EvaluationConfig(candidates=4, choice=choice))(obs)
        wanted = act(
            learner.target_actor,
            learner.target_critic,
            torch.zeros(50, 2),
            candidates=4,
            choice=choice,
            generator=learner.stream("evaluation"),
        )
        np.testing.assert_allclose(taken, wanted, atol=1e-6)  # the Box is [-1, 1]


def test_evaluate_chooses_among_candidates_as_the_learner_does(make_config: Make) -> None:
    config = make_config()
    dataset, seen = load_data(config).dataset, []
    for choice in (ArgmaxChoice(), SoftmaxChoice(temperature=1000.0)):
        policy = config.policy.replace(learner=config.policy.learner.replace(choice=choice))
        learner = GTPLearner.from_dataset(dataset, policy)
        many = evaluate(learner, dataset, "line_world:make", episodes=2, candidates=8)
        wanted = config.replace(
            evaluation=EvaluationConfig(
                environment="line_world:make", episodes=2, candidates=8, choice=choice
            )
        )
        act = policy_of(learner, dataset, wanted.evaluation)
        same = np.random.SeedSequence(0).generate_state(2).tolist()
        evaluator = Evaluator(wanted, dataset)
        by_hand = _run_episodes(act, evaluator._envs, dataset, same, 0, None)
        assert many == by_hand
        seen.append(many)
    assert seen[0] != seen[1]


@pytest.mark.parametrize("other", ["bounds", "keys"])
def test_data_in_other_units_than_the_policy_is_refused(other: str) -> None:
    rng = np.random.default_rng(0)

    def data(high: float, *keys: str) -> OfflineDataset:
        episodes = [
            {
                "obs": {"a": rng.normal(size=(9, 1)), "b": rng.normal(size=(9, 1)) + 5},
                "action": rng.uniform(-1, 1, (8, 1)),
                "reward": np.zeros(8),
            }
        ]
        return OfflineDataset.from_episodes(episodes, low=-high, high=high, obs_keys=keys)

    own = data(1.0, "a", "b")
    learner = GTPLearner.from_dataset(own, GTPConfig())
    theirs = data(2.0, "a", "b") if other == "bounds" else data(1.0, "b", "a")
    for look in (
        lambda d: policy_of(learner, d, EvaluationConfig()),
        lambda d: fit_of_actions(learner, d),
        lambda d: plot_actions(learner, d),
        lambda d: plot_advantages(learner, d),
    ):
        look(own)
        with pytest.raises(DataError, match="of the dataset"):
            look(theirs)
    with pytest.raises(DataError, match="of the dataset"):
        evaluate(learner, theirs, "line_world:make", episodes=1)


# --- statistics


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    values = [100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -50.0]
    figure = spread(values)
    assert figure.iqm == np.mean([2.0, 3.0, 4.0, 5.0])
    assert figure.mean == np.mean(values)
    assert figure.std == pytest.approx(np.std(values, ddof=1))
    assert spread([7.0]) == (7.0, None, 7.0, None, None, 1)


def test_the_interval_of_two_seeds_is_their_range() -> None:
    # A resample's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4: both ends weigh over 2.5 %.
    assert spread([0.0, 1.0])[3:5] == (0.0, 1.0)
    assert difference_interval([0.0, 1.0], [5.0, 5.0]) == (-5.0, -4.0)


def test_the_interval_of_many_seeds_is_the_normal_one() -> None:
    x, y = (np.random.default_rng(seed).normal(size=400) for seed in (0, 1))
    low, high = difference_interval(x.tolist(), (y + 3).tolist())
    half = 1.96 * np.sqrt((x.var() + y.var()) / 400)
    middle = x.mean() - y.mean() - 3
    np.testing.assert_allclose((low, high), (middle - half, middle + half), atol=0.05 * half)


def test_the_interval_of_a_mean_counts_seeds_and_their_episodes() -> None:
    rng = np.random.default_rng(0)
    seeds, episodes = 100, 30
    values = rng.normal(size=(seeds, 1)) + 3 * rng.normal(size=(seeds, episodes))
    low, high = mean_interval(values)
    # Resampling adds the spread of a seed's episodes to that of the seeds' means.
    variance = (values.mean(1).var() + values.var(1).mean() / episodes) / seeds
    half = 1.96 * np.sqrt(variance)
    np.testing.assert_allclose(
        (low, high), values.mean() + np.array([-half, half]), atol=0.05 * half
    )
    assert mean_interval(values) == (low, high)


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]]])
def test_unusable_values(values: Any) -> None:
    with pytest.raises(DataError, match="`values` is unusable"):
        spread(values)


@pytest.mark.parametrize("values", [[], [1.0], [[]], [[float("inf")]]])
def test_unusable_values_of_seeds_and_episodes(values: Any) -> None:
    with pytest.raises(DataError, match="`values` is unusable"):
        mean_interval(values)


# --- tables


def result(method: str, seed: int, *scores: float, **fields: Any) -> RunResult:
    defaults: dict[str, Any] = {
        "method": method,
        "dataset": "a/b-v0",
        "data_note": "made up",
        "task": "antmaze-umaze",
        "group": method,
        "seed": seed,
        "updates": 20,
        "status": "finished",
        "evaluations": tuple(
            Evaluation(update=10 * i, returns=(s / 100,), lengths=(1,))
            for i, s in enumerate(scores, 1)
        ),
        "reference": Reference(min=0.0, max=1.0, source="D4RL antmaze"),
        "ms_per_update": 2.0 * seed,
        "data_sha256": "00",
        "config": {},
        "provenance": {},
    }
    return RunResult(**{**defaults, **fields})


def test_a_table_keeps_last_best_and_the_paper_apart() -> None:
    text = table([result("gtp", 1, 90, 60), result("gtp", 0, 70, 80), result("mine", 0, 10)])
    line = next(line for line in text.splitlines() if "| gtp" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "antmaze-umaze (a/b-v0)", "gtp", "0, 1", "20", "70.0 ± 14.1", "70.0 [60.0, 80.0]",
        "85.0 ± 7.1", "1.0", PAPER["antmaze-umaze", "gtp"],
    ]  # fmt: skip
    assert PAPER["antmaze-umaze", "gtp"] == "100.0"
    mine = next(line for line in text.splitlines() if "| mine" in line)
    assert mine.rstrip("| ").endswith("0.0")  # neither interval nor figure of the paper
    assert "reference D4RL antmaze; data: made up" in text


def test_a_table_shows_divergence() -> None:
    text = table([result("gtp", 0, status="diverged", message="after 3"), result("gtp", 1, 5)])
    assert "no evaluation (1 of 2 diverged)" in text


def test_the_same_run_twice_is_an_error() -> None:
    with pytest.raises(DataError, match=r"there twice: got seeds \[0, 0\]"):
        rows([result("gtp", 0, 1), result("gtp", 0, 2)])


def test_other_data_are_another_row() -> None:
    assert len(rows([result("gtp", 0, 1), result("gtp", 0, 2, data_sha256="11")])) == 2


def test_the_paper_has_every_task_once() -> None:
    tasks = {task for task, method in PAPER if method == "gtp_bc"}
    assert len(tasks) == 15
    average = np.mean([float(PAPER[t, "gtp_bc"]) for t in tasks if not t.startswith("antmaze")])
    assert round(float(average), 1) == 82.3  # the paper's own average
    maze = np.mean([float(PAPER[t, "gtp"]) for t in tasks if t.startswith("antmaze")])
    assert round(float(maze), 1) == 80.6 or round(float(maze), 1) == 80.7


# --- provenance and the command


def test_the_revision_is_what_git_says(tmp_path: Path) -> None:
    def git(*words: str, cwd: Path = tmp_path) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
        done = subprocess.run(
            ["git", *who, *words], cwd=cwd, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert _git_revision(tmp_path) is None
    git("init", "-q")
    assert _git_revision(tmp_path) is None  # no commit yet
    git("commit", "-q", "--allow-empty", "-m", "one")
    assert _git_revision(tmp_path) == git("rev-parse", "HEAD")
    git("pack-refs", "--all")
    assert _git_revision(tmp_path) == git("rev-parse", "HEAD")
    git("worktree", "add", "-q", "-b", "other", "linked")
    git("commit", "-q", "--allow-empty", "-m", "two", cwd=tmp_path / "linked")
    assert _git_revision(tmp_path / "linked") == git("rev-parse", "other")
    git("checkout", "-q", "--detach")
    assert _git_revision(tmp_path) == git("rev-parse", "HEAD")


def test_config_prints_a_document_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "config --dataset a/b-v0 --updates 70 --out x --preset gtp_bc --reward antmaze --seeds 3"
    )
    words += " --set learner.actor_lr=1e-3 --set actor.hidden=[64,64] --task antmaze-umaze"
    assert main(words.split()) == 0
    config = RunConfig.model_validate_json(capsys.readouterr().out)
    assert (config.method, config.seed, config.updates) == ("gtp_bc", 3, 70)
    assert config.policy.learner.actor_lr == 1e-3
    assert config.policy.actor.hidden == (64, 64)
    assert config.policy.critic is None
    assert config.reward == LinearReward(subtract=0.5, multiply=4.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--preset nothing", "error: Unknown preset: got 'nothing'"),
        (
            "--set learner.actor_rl=1",
            "--set does not fit: got 'learner.actor_rl=1', and the config says: Extra inputs",
        ),
        ("--set learner", "error: --set is malformed: got 'learner'"),
        ("--set learner.seed=7", "has no effect: got learner.seed=7, which is always the run's"),
        ("--set learner.total_updates=7", "Leave it out, and choose it by --updates"),
        ('--set learner={"seed":7}', "error: --set has no effect: got learner.seed=7"),
        ("--set critic=null --set critic.hidden=[1]", "error: --set leads nowhere"),
        ("--set learner.actor_lr=fast", "says: Input should be a valid number"),
        ("--task chess", "must start with one of"),
        ("--episodes 0", "error: episodes: Input should be greater than or equal to 1"),
        ("--seeds 0 0", "error: Some experiments are the same"),
        ("--jobs 0", "error: `jobs` is out of range"),
        ("", "error: Minari dataset 'no/such-v0' is not on this machine"),
    ],
)
def test_a_wrong_command_says_why(
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    minari_root: Path,
    tmp_path: Path,
) -> None:
    base = f"run --dataset no/such-v0 --updates 5 --out {tmp_path}"
    assert main([*base.split(), *words.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_reward_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main("config --dataset a/b-v0 --updates 5 --out x --reward plenty".split())
    assert left.value.code == 2
    assert "got 'plenty', expected one of none, antmaze" in capsys.readouterr().err


def test_the_command_runs_and_tabulates(
    line_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"run --dataset {line_data} --updates 4 --out {tmp_path} --preset gtp_bc --episodes 2"
    words += " --environment line_world:make --set actor.hidden=[8] --batch-size 4"
    assert main(words.split()) == 0
    first = capsys.readouterr().out
    assert "gtp_bc" in first
    assert main(["table", str(tmp_path)]) == 0
    assert capsys.readouterr().out == first
    assert main(["table", str(tmp_path / "nowhere")]) == 2


def test_numbers_of_numpy_are_numbers_in_a_runs_config() -> None:
    n = np.int64(3)
    config = RunConfig(
        dataset="a/b-v0",
        method="m",
        updates=n,
        seed=n,
        gamma=np.float32(0.5),
        evaluation=EvaluationConfig(episodes=n, max_steps=n),
    )
    plain = RunConfig(
        dataset="a/b-v0",
        method="m",
        updates=3,
        seed=3,
        gamma=0.5,
        evaluation=EvaluationConfig(episodes=3, max_steps=3),
    )
    assert config.model_dump_json() == plain.model_dump_json()
    with pytest.raises(ValidationError, match="valid integer"):
        RunConfig(dataset="a/b-v0", method="m", updates=np.float64(3))


def test_logs_of_the_mountain_car_repeat_themselves_and_some_drives_never_arrive() -> None:
    logs, again = mountain_car_logs(12), mountain_car_logs(12)
    assert torch.equal(logs.table, again.table)
    found = report(logs)
    assert found.episodes == 12
    assert 0 < found.truncated < found.terminated
    assert not torch.equal(logs.table[:50], mountain_car_logs(1, seed=1).table[:50])
    with pytest.raises(ValueError, match="at least 1"):
        mountain_car_logs(0)


def test_evaluate_repeats_itself_and_refuses_another_environment() -> None:
    logs = mountain_car_logs(2)
    learner = GTPLearner.from_dataset(logs, GTPConfig(critic=None))
    seen = [
        evaluate(learner, logs, "MountainCarContinuous-v0", episodes=3, max_steps=20, seed=s)
        for s in (0, 0, 1)
    ]
    assert seen[0] == seen[1] != seen[2]
    assert seen[0].lengths == (20, 20, 20)
    assert seen[0].mean_length == 20.0
    with pytest.raises(ExperimentError, match="do not fit the dataset"):
        evaluate(learner, logs, "Pendulum-v1")
