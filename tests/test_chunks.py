"""Histories and chunks: data, losses and playing against plain walks through the episodes."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from gtp_policy import (
    ExpectileBaseline,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    GTPLoss,
    GTPLossConfig,
    LinearQGuidance,
    MultiSeedLearner,
    ObservationLayout,
    OfflineDataset,
    QEnsembleConfig,
    QuantileBaseline,
    load_checkpoint,
    presets,
    save_checkpoint,
)
from gtp_policy.chunks import ChunkPlayer, ChunkState, Playback
from gtp_policy.errors import CheckpointError, DataError, ShapeError
from gtp_policy.kernels import using
from gtp_policy.loss import gtp_residuals
from gtp_policy.rewards import LinearReward
from gtp_policy.samplers import OdeSampler
from gtp_policy.teachers import NoTeacher
from gtp_policy.times import LinearTimes, Times

OBS, ACT = 2, 3


class Episode(NamedTuple):
    """Steps of one episode, as plain lists."""

    obs: list[list[float]]  # one more than steps
    action: list[list[float]]
    reward: list[float]
    terminated: bool


@st.composite
def episodes(draw: st.DrawFn) -> list[Episode]:
    """Episodes of one to seven steps, whose numbers tell where they come from."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 7))
        found.append(
            Episode(
                obs=[[10.0 * number + t, -t] for t in range(steps + 1)],
                action=[[0.2 * number, t / 10, -t / 20] for t in range(steps)],
                reward=[draw(st.integers(-3, 3)) + 0.5 for _ in range(steps)],
                terminated=draw(st.booleans()),
            )
        )
    return found


def dataset_of(walks: list[Episode], gamma: float = 0.9) -> OfflineDataset:
    last = [(e.terminated, t == len(e.action) - 1) for e in walks for t in range(len(e.action))]
    return OfflineDataset.from_arrays(
        obs=np.array([o for e in walks for o in e.obs[:-1]]),
        next_obs=np.array([o for e in walks for o in e.obs[1:]]),
        action=np.array([a for e in walks for a in e.action]),
        reward=np.array([r for e in walks for r in e.reward]),
        terminated=np.array([end and ended for ended, end in last]),
        truncated=np.array([end and not ended for ended, end in last]),
        low=[-1.0] * ACT,
        high=[1.0] * ACT,
        gamma=gamma,
    )


def history_of(episode: Episode, t: int, m: int) -> list[float]:
    """The last m observations at time t, flat, the first one repeated."""
    return [x for back in range(m - 1, -1, -1) for x in episode.obs[max(t - back, 0)]]


@given(walks=episodes(), m=st.integers(1, 4), h=st.integers(1, 5))
def test_windows_are_those_of_a_walk_through_the_episodes(
    walks: list[Episode], m: int, h: int
) -> None:
    gamma = 0.9
    dataset = dataset_of(walks, gamma).with_history(m).with_chunks(h)
    found, row = dataset.transitions, 0
    assert (dataset.obs_dim, dataset.action_dim) == (m * OBS, h * ACT)
    for episode in walks:
        steps = len(episode.action)
        for t in range(steps):
            known = min(h, steps - t)
            actions = [x for j in range(h) for x in episode.action[min(t + j, steps - 1)]]
            ended = episode.terminated and t + known == steps
            assert found.obs[row].tolist() == pytest.approx(history_of(episode, t, m))
            assert found.next_obs[row].tolist() == pytest.approx(history_of(episode, t + known, m))
            assert found.action[row].tolist() == pytest.approx(actions, abs=1e-6)
            total = sum(gamma**j * episode.reward[t + j] for j in range(known))
            assert float(found.reward[row]) == pytest.approx(total, rel=1e-5, abs=1e-5)
            assert float(found.discount[row]) == pytest.approx(0 if ended else gamma**known)
            if h > 1:
                assert float(found.chunk_length[row]) == known
                mask = [float(j < known) for j in range(h) for _ in range(ACT)]
                assert found.action_mask(h)[row].tolist() == mask
                assert float(found.critic_mask(h)[row]) == float(known == h or ended)
            row += 1
    assert row == len(dataset)
    if h == 1:
        assert found.chunk_length is None


@given(walks=episodes(), h=st.integers(2, 5))
def test_chunks_have_the_statistics_of_single_actions(walks: list[Episode], h: int) -> None:
    one = dataset_of(walks)
    for single, chunk in zip(
        one.action_statistics(), one.with_chunks(h).action_statistics(), strict=True
    ):
        assert torch.equal(chunk, single.repeat(h))
    assert one.action_std() == one.with_chunks(h).action_std()


def some_data(seed: int = 0, count: int = 30) -> OfflineDataset:
    random = np.random.default_rng(seed)
    walks = []
    for number in range(count):
        steps = int(random.integers(1, 9))
        walks.append(
            Episode(
                obs=random.normal(size=(steps + 1, OBS)).tolist(),
                action=random.uniform(-1, 1, (steps, ACT)).tolist(),
                reward=random.normal(size=steps).tolist(),
                terminated=bool(number % 2),
            )
        )
    return dataset_of(walks)


def config_of(loss: dict[str, Any] | None = None, **learner: Any) -> GTPConfig:
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16, 16), time_dim=8, steps=2, times=LinearTimes()),
        critic=QEnsembleConfig(hidden=(16, 16)),
        loss=GTPLossConfig(**{"adaptive_power": 0.0, **(loss or {})}),
        learner=GTPLearnerConfig(total_updates=100, **learner),
    )


def same_bits(a: GTPLearner, b: GTPLearner) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_one_step_is_the_learner_without_chunks_bit_for_bit(engine: Any) -> None:
    dataset, states = some_data(), []
    for data in (dataset, dataset.with_history(1).with_chunks(1), dataset.with_steps(1, 1)):
        learner = GTPLearner.from_dataset(data, config_of())
        with using(engine):
            learner.update_from(data, 4, batch_size=16)
        states.append(learner)
    assert same_bits(states[0], states[1])
    assert same_bits(states[0], states[2])
    obs = dataset.transitions.obs[:5]
    played = states[0].player(deterministic=True).act(obs)
    assert torch.equal(played, states[0].act(obs, deterministic=True))


@pytest.mark.parametrize(
    ("loss", "learner"),
    [
        ({}, {}),
        ({"reduction": "sum", "huber": 0.1}, {"baseline": ExpectileBaseline(hidden=(8,))}),
        (
            {"adaptive_power": 0.5, "flow_times": "uniform", "map_share": 0.5},
            {"baseline": QuantileBaseline(hidden=(8,)), "backup": "value"},
        ),
        ({"units": "velocity"}, {"guidance": LinearQGuidance(steps=1)}),
        ({"teacher": NoTeacher()}, {"backup_actions": 2, "backup": "best_of_n"}),
    ],
)
def test_gradients_by_hand_are_those_of_autograd(
    loss: dict[str, Any], learner: dict[str, Any]
) -> None:
    dataset = some_data().with_history(2).with_chunks(3)
    found = {}
    for engine in ("auto", "reference"):
        one = GTPLearner.from_dataset(dataset, config_of(loss, **learner))
        with using(engine):
            expected = "fused" if engine == "auto" else "reference"
            assert expected in one.explain()[0]
            metrics = one.update_from(dataset, 3, batch_size=32).to_floats()
        found[engine] = one, metrics
    fast, reference = found["auto"][0], found["reference"][0]
    for (name, a), b in zip(fast.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
    assert found["auto"][1] == pytest.approx(found["reference"][1], rel=1e-3, abs=1e-5)


def test_several_seeds_are_each_alone() -> None:
    dataset = some_data().with_chunks(3)
    both = MultiSeedLearner.from_dataset(dataset, config_of(), seeds=(0, 1))
    both.update_from(dataset, 2, batch_size=16)
    for learner in both.learners:
        config = config_of(seed=learner.config.seed)
        alone = GTPLearner.from_dataset(dataset, config)
        alone.update_from(dataset, 2, batch_size=16)
        for a, b in zip(learner.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_loss_counts_known_numbers_alone() -> None:
    """Against sums in plain Python over the residuals of known steps."""
    h, dataset = 3, some_data(1).with_chunks(3)
    batch = dataset.sample(12, generator=torch.Generator().manual_seed(0))
    config = presets.paper_loss().actor.replace(hidden=(8,), time_dim=4, chunk=h)
    actor = FlowMapActor(OBS, h * ACT, config)
    target = copy.deepcopy(actor).requires_grad_(False)
    loss = GTPLoss(presets.paper_loss().loss)
    draws = loss.draw(
        actor.times, batch.action, progress=0.5, generator=torch.Generator().manual_seed(1)
    )
    mask = batch.action_mask(h)
    terms = loss.terms(actor, target, batch.obs, batch.action, None, *draws, mask=mask)
    residuals = gtp_residuals(
        actor, target, batch.obs, batch.action, Times(*draws.times), draws.z, loss.config.teacher
    )
    for got, residual in zip(
        (terms.consistency, terms.flow), (residuals.consistency, residuals.flow), strict=True
    ):
        total = 0.0
        for row, length in zip(residual.tolist(), batch.chunk_length.tolist(), strict=True):
            total += sum(x**2 for x in row[: int(length) * ACT]) / (h * ACT)
        assert float(got) == pytest.approx(total / 12, rel=1e-4)
    assert 0 < mask.mean() < 1  # or nothing was tried


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(
    "baseline", [None, ExpectileBaseline(hidden=(8,)), QuantileBaseline(hidden=(8,))]
)
def test_rewards_of_chunks_that_a_cut_left_incomplete_teach_nothing(
    engine: Any, baseline: Any
) -> None:
    dataset = some_data(2).with_chunks(4)
    config = config_of(**({} if baseline is None else {"baseline": baseline}))
    whole = dataset.sample(32, generator=torch.Generator().manual_seed(0))
    # Values of terminal rows are known, although they are incomplete.
    known = whole.critic_mask(4).bool()
    ends = known & (whole.chunk_length < 4)
    assert (~known).any()
    assert ends.any()
    learners = []
    for rows in (torch.zeros_like(known), ~known, ends):
        learner = GTPLearner.from_dataset(dataset, config)
        reward = torch.where(rows, whole.reward + 5.0, whole.reward)
        with using(engine):
            for _ in range(3):
                learner.update(whole._replace(reward=reward))
        learners.append(learner)
    assert same_bits(learners[0], learners[1])
    assert not same_bits(learners[0], learners[2])


def test_a_chunk_is_cloned_with_its_steps_in_order() -> None:
    """Data whose action says the time: the chunk has to count on from where it starts."""
    steps, h = 12, 4
    obs = np.tile(np.arange(steps) / steps, 40)[:, None]
    dataset = OfflineDataset.from_arrays(
        obs=obs,
        action=0.9 - 1.8 * obs,
        reward=np.zeros(len(obs)),
        next_obs=obs,
        terminated=np.zeros(len(obs)),
        truncated=np.tile(np.arange(steps) == steps - 1, 40),
        low=[-1.0],
        high=[1.0],
    ).with_chunks(h)
    config = GTPConfig(
        actor=FlowMapActorConfig(hidden=(64, 64), times=LinearTimes(), sampler=OdeSampler()),
        critic=None,
        loss=GTPLossConfig(teacher=NoTeacher()),
        learner=GTPLearnerConfig(total_updates=600, actor_lr=3e-3, ema_rate=0.05),
    )
    learner = GTPLearner.from_dataset(dataset, config)
    learner.update_from(dataset, 600, batch_size=64)
    at = torch.tensor([[2 / steps], [5 / steps]])
    expected = 0.9 - 1.8 * (at + torch.arange(h) / steps)
    drawn = learner.act(at.repeat_interleave(200, 0), generator=learner.stream("test"))
    # A step of time changes the action by 0.15.
    assert (drawn.view(2, 200, h).mean(1) - expected).abs().max() < 0.14


# --- playing


def plan_of(obs: Tensor, chunk: int) -> Tensor:
    """A chunk of two numbers a step that tells what was seen, and which step it is."""
    seen = (obs * torch.arange(1, obs.shape[1] + 1)).sum(1)
    step = torch.arange(chunk)
    first = torch.sin(seen)[:, None] + step / 8
    return torch.stack([first, torch.cos(seen)[:, None] * (step + 1)], 2).flatten(1)


class Walker:
    """The oracle: one environment, with lists."""

    def __init__(self, chunk: int, history: int, playback: Playback) -> None:
        self.h, self.m = chunk, history
        self.every, self.ensemble = playback.every or chunk, playback.ensemble
        self.asked = 0
        self.begin()

    def begin(self) -> None:
        self.time = 0
        self.seen: list[list[float]] = []
        self.plans: list[tuple[int, list[list[float]]]] = []  # (when, chunk)

    def step(self, obs: list[float]) -> list[float]:
        self.seen.append(obs)
        if self.time % self.every == 0:
            past = [self.seen[max(len(self.seen) - 1 - b, 0)] for b in range(self.m - 1, -1, -1)]
            flat = torch.tensor([x for o in past for x in o])[None]
            chunk = plan_of(flat, self.h).view(self.h, -1).tolist()
            self.plans.append((self.time, chunk))
            self.asked += 1
        speaking = [p[self.time - when] for when, p in self.plans if self.time - when < self.h]
        self.time += 1
        if self.ensemble is None:
            return speaking[-1]
        weights = [math.exp(-self.ensemble * i) for i in range(len(speaking))]
        return [
            sum(w * a[d] for w, a in zip(weights, speaking, strict=True)) / sum(weights)
            for d in range(2)
        ]


@st.composite
def playings(draw: st.DrawFn) -> tuple[int, int, Playback]:
    chunk = draw(st.integers(1, 6))
    every = draw(st.none() | st.integers(1, chunk))
    ensemble = None
    if every is not None and every < chunk:
        ensemble = draw(st.none() | st.sampled_from([0.0, 0.1, 2.0]))
    return chunk, draw(st.integers(1, 4)), Playback(every=every, ensemble=ensemble)


@given(
    playing=playings(),
    starts=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=14),
    data=st.data(),
)
def test_a_player_plays_as_lists_would(
    playing: tuple[int, int, Playback], starts: list[list[bool]], data: st.DataObject
) -> None:
    """Three environments out of step: kept, carried as a state, and carried as rows of zeros."""
    chunk, history, playback = playing
    asked: list[int] = []

    def plan(obs: Tensor) -> Tensor:
        asked.append(len(obs))
        return plan_of(obs, chunk)

    def player() -> ChunkPlayer:
        return ChunkPlayer(plan, chunk=chunk, history=history, playback=playback)

    keeping, carrying, hosted = player(), player(), player()
    walkers = [Walker(chunk, history, playback) for _ in range(3)]
    state: ChunkState | None = None
    rows: np.ndarray | None = None
    for number, begins in enumerate(starts):
        obs = torch.tensor([[number + 0.5 * env, env - number] for env in range(3)]) / 3
        for walker, begin in zip(walkers, begins, strict=True):
            if begin:
                walker.begin()
        expected = torch.tensor(
            [walker.step(o) for walker, o in zip(walkers, obs.tolist(), strict=True)]
        )
        kept = keeping.act(obs, begins if number else None)
        assert sum(asked) == sum(walker.asked for walker in walkers)
        before = copy.deepcopy(state)
        carried, after = carrying.step(obs.numpy(), state, np.array(begins))
        if state is not None:  # it went in and was not written to
            assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))
        state = after
        if rows is not None:
            rows[np.array(begins)] = 0  # as a host clears what it carries
        given = None if rows is None else hosted.from_rows(rows, obs_dim=2)
        hosted_action, own = hosted.step(obs, given)
        rows = own.to_rows()
        for action in (kept, carried, hosted_action):
            torch.testing.assert_close(action, expected, rtol=1e-5, atol=1e-6)
        asked.clear()
        for walker in walkers:
            walker.asked = 0


def test_a_chunk_of_four_asks_a_quarter_as_often() -> None:
    dataset = some_data().with_chunks(4)
    learner = GTPLearner.from_dataset(dataset, config_of())
    calls = []
    learner.target_actor.network.register_forward_hook(lambda *_: calls.append(1))
    player = learner.player(candidates=1)
    for _ in range(16):
        player.act(torch.zeros(3, OBS))
    assert len(calls) == 4 * learner.actor.config.steps


def test_a_player_goes_on_in_a_checkpoint_where_it_was(tmp_path: Any) -> None:
    dataset = some_data().with_history(2).with_chunks(4)
    config = config_of(playback=Playback(every=2, ensemble=0.5))
    learner = GTPLearner.from_dataset(dataset, config)
    learner.update_from(dataset, 2, batch_size=16)
    path = save_checkpoint(
        tmp_path / "a", learner, action_scaler=dataset.action_scaler, layout=dataset.layout
    )
    loaded = load_checkpoint(path)
    actor = loaded.learner.full_config.actor
    assert (actor.history, actor.chunk) == (2, 4)
    assert loaded.layout == ObservationLayout((OBS,))
    players = [one.player(deterministic=True) for one in (learner, loaded.learner)]
    for _ in range(6):
        obs = torch.randn(3, OBS, generator=torch.Generator().manual_seed(0))
        actions = [loaded.action_scaler.to_box(player.act(obs)) for player in players]
        assert actions[0].shape == (3, ACT)
        assert torch.equal(*actions)
    again = GTPLearner.from_dataset(dataset, config)
    again.load_state_dict(loaded.learner.state_dict())
    assert same_bits(again, learner)


def test_a_checkpoint_holds_bounds_and_layout_of_one_step(tmp_path: Any) -> None:
    dataset = some_data().with_chunks(2)
    learner = GTPLearner.from_dataset(dataset, config_of())
    wrong = OfflineDataset.from_arrays(
        obs=np.zeros((1, OBS)), action=np.zeros((1, 2 * ACT)), reward=[0.0], terminated=[1],
        truncated=[0], low=[-1.0] * 2 * ACT, high=[1.0] * 2 * ACT,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="bounds"):
        save_checkpoint(tmp_path / "a", learner, action_scaler=wrong.action_scaler)


# --- what does not fit


def test_a_config_and_a_dataset_agree_or_say_so() -> None:
    dataset = some_data()
    learner = GTPLearner.from_dataset(dataset.with_history(3).with_chunks(2), config_of())
    assert (learner.actor.config.history, learner.actor.config.chunk) == (3, 2)
    config = config_of()
    four = config.replace(actor=config.actor.replace(chunk=4))
    with pytest.raises(DataError, match=r"got 1, expected 4\. Train on dataset\.with_chunks\(4\)"):
        GTPLearner.from_dataset(dataset, four)
    assert GTPLearner.from_dataset(dataset.with_steps(1, 4), four).actor.action_dim == 4 * ACT
    with pytest.raises(DataError, match=r"got \(history, chunk\) = \(1, 2\), expected \(1, 4\)"):
        dataset.with_chunks(2).with_steps(1, 4)
    with pytest.raises(ValueError, match="`chunk` does not fit: got 2 with 3"):
        GTPLearner.build(OBS, ACT, config.replace(actor=config.actor.replace(chunk=2)))
    with pytest.raises(ValidationError, match="critic_penalty compares actions of one step"):
        config.replace(
            actor=config.actor.replace(chunk=2),
            learner=config.learner.replace(critic_penalty=0.1),
        )


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "2"])
def test_wrong_numbers_of_steps(steps: Any) -> None:
    for method in ("with_history", "with_chunks"):
        with pytest.raises(DataError, match="expected an integer >= 1"):
            getattr(some_data(), method)(steps)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (("with_chunks", 2), ("with_n_step", 2), "got chunk=2"),
        (("with_chunks", 2), ("with_chunks", 2), "got chunk=2"),
        (("with_chunks", 2), ("with_history", 2), "got chunk=2"),
        (("with_chunks", 2), ("with_rewards", LinearReward()), "got chunk=2"),
        (("with_chunks", 2), ("with_best_episodes", 0.5), "got chunk=2"),
        (("with_chunks", 2), ("with_return_weighting", 1.0), "got chunk=2"),
        (("with_chunks", 2), ("with_next_actions",), "got chunk=2"),
        (("with_n_step", 2), ("with_chunks", 2), "got n_step=2"),
        (("with_n_step", 2), ("with_history", 2), "got n_step=2"),
        (("with_history", 2), ("with_history", 2), "got history=2"),
        (("with_next_actions",), ("with_chunks", 2), "has no next actions"),
    ],
)
def test_windows_of_windows_are_refused(first: Any, then: Any, message: str) -> None:
    dataset = some_data()
    changed = getattr(dataset, first[0])(*first[1:])
    with pytest.raises(DataError, match=message):
        getattr(changed, then[0])(*then[1:])


def test_a_minibatch_of_chunks_fits_a_learner_of_chunks_alone() -> None:
    dataset = some_data().with_chunks(2)
    learner = GTPLearner.from_dataset(dataset, config_of())
    batch = dataset.sample(8, generator=torch.Generator().manual_seed(0))
    learner.update(batch._replace(chunk_length=None))  # all of it is the data's then
    length = torch.ones(8)
    for bad, message in (
        (length * torch.nan, "`chunk_length` is not finite"),
        (length * 0, "`chunk_length` is out of range: got 0 at row 0"),
    ):
        with pytest.raises(DataError, match=message):
            learner.update(batch._replace(chunk_length=bad))
    with pytest.raises(ShapeError, match="`chunk_length` has the wrong shape"):
        learner.update(batch._replace(chunk_length=length[:, None]))
    single = GTPLearner.build(OBS, 2 * ACT, config_of())
    with pytest.raises(DataError, match="`chunk_length` is of no use"):
        single.update(batch)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ensemble": 0.1}, "give every"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"every": 2, "ensemble": -1.0}, "greater than or equal to 0"),
    ],
)
def test_wrong_ways_to_play(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Playback(**fields)


@pytest.mark.parametrize("playback", [Playback(every=5), Playback(every=4, ensemble=0.0)])
def test_ways_to_play_that_do_not_fit_the_chunk(playback: Playback) -> None:
    with pytest.raises(ValueError, match=r"playback\.every is out of range"):
        ChunkPlayer(lambda obs: obs, chunk=4, playback=playback)
    config = config_of(playback=playback)
    with pytest.raises(ValidationError, match=r"playback\.every is out of range"):
        config.replace(actor=config.actor.replace(chunk=4))


def test_what_is_wrong_while_playing() -> None:
    player = ChunkPlayer(lambda obs: torch.zeros(len(obs), 4), chunk=2, history=2)
    _, state = player.step(torch.zeros(3, 5))
    for bad, error, message in (
        (torch.zeros(3), ShapeError, "`obs` has the wrong shape"),
        (torch.zeros(0, 5), ShapeError, "`obs` has the wrong shape"),
        (torch.zeros(2, 5), ShapeError, "`state` does not fit"),
        (torch.zeros(3, 4), ShapeError, "`state` does not fit"),
    ):
        with pytest.raises(error, match=message):
            player.step(bad, state)
    with pytest.raises(ShapeError, match="`episode_start` has the wrong shape"):
        player.step(torch.zeros(3, 5), state, [True])
    with pytest.raises(DataError, match="`state` is none of this policy"):
        player.step(torch.zeros(3, 5), (1, 2))
    with pytest.raises(ShapeError, match="`rows` have the wrong shape"):
        player.from_rows(np.zeros((3, 5)), obs_dim=5)
    odd = ChunkPlayer(lambda obs: torch.zeros(len(obs), 3), chunk=2)
    with pytest.raises(ShapeError, match="chunks have the wrong shape"):
        odd.act(torch.zeros(1, 5))


def test_steps_are_counted_whatever_the_precision_of_plans() -> None:
    player = ChunkPlayer(lambda obs: torch.zeros(len(obs), 4, dtype=torch.float16), chunk=2)
    _, state = player.step(torch.zeros(1, 5, dtype=torch.float16))
    old = state._replace(age=np.array([4097]))
    assert player.from_rows(old.to_rows(), obs_dim=5).age.tolist() == [4097]
