"""What a newcomer calls: fit, predict, save and load, and arrays where tensors are asked."""

import copy
import io
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.spaces import Box

from gtp_policy import (
    ActionScaler,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    MultiSeedLearner,
    OfflineDataset,
    QEnsembleConfig,
    StopSignal,
    act,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.errors import (
    BrokenLearnerError,
    DataError,
    NonFiniteError,
    ShapeError,
    TrainingWarning,
)
from gtp_policy.export.source import Plan, source_of
from gtp_policy.progress import Progress

LOW, HIGH = np.array([-2.0, 0.1]), np.array([2.0, 10.3])


def make_dataset(rows: int = 60, obs_dim: int = 3, **changes: Any) -> OfflineDataset:
    rng = np.random.default_rng(0)
    columns = {
        "obs": rng.normal(size=(rows, obs_dim)),
        "action": rng.uniform(LOW, HIGH, (rows, 2)),
        "reward": rng.normal(size=rows),
        "terminated": np.zeros(rows, bool),
        "truncated": np.arange(rows) % 20 == 19,
    }
    return OfflineDataset.from_arrays(**{**columns, "low": LOW, "high": HIGH, **changes})


def make_config(*, critic: bool = True, **learner: Any) -> GTPConfig:
    return GTPConfig(
        actor=FlowMapActorConfig(hidden=(16,), time_dim=4),
        critic=QEnsembleConfig(hidden=(16,)) if critic else None,
        learner=GTPLearnerConfig(**learner),
    )


def make_learner(dataset: OfflineDataset, **choices: Any) -> GTPLearner:
    return GTPLearner.from_dataset(dataset, make_config(**choices))


def assert_equal(a: GTPLearner, b: GTPLearner) -> None:
    assert a.updates == b.updates
    for name, value in a.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b.state_dict()[name]), name
    for name, own in a.optimizers.items():
        moments = own.state_dict()["state"], b.optimizers[name].state_dict()["state"]
        assert moments[0].keys() == moments[1].keys()
        for i, entries in moments[0].items():
            assert all(torch.equal(entries[k], moments[1][i][k]) for k in entries)


def by_hand(dataset: OfflineDataset, updates: int, **choices: Any) -> GTPLearner:
    learner = make_learner(dataset, **choices)
    for _ in range(updates):
        learner.update(dataset.sample(16, generator=learner.stream("batch")))
    return learner


def test_fit_is_the_loop_bit_for_bit_however_it_is_divided(tmp_path: Path) -> None:
    dataset = make_dataset()
    expected = by_hand(dataset, 12, total_updates=12)
    whole = make_learner(dataset, total_updates=12)
    metrics = whole.fit(dataset, batch_size=16, progress=False)
    assert_equal(whole, expected)
    parts = make_learner(dataset, total_updates=12)
    parts.fit(dataset, 5, batch_size=16, progress=False, every=2)
    parts = GTPLearner.load(parts.save(tmp_path / "half.zip"))
    assert parts.fit(dataset, batch_size=16, progress=False) == metrics
    assert_equal(parts, expected)
    assert parts.fit(dataset, batch_size=16, progress=False) == {}  # nothing is left
    assert_equal(parts, expected)


def test_a_run_whose_length_was_left_open_is_as_long_as_the_first_call_says() -> None:
    dataset = make_dataset()
    learner = make_learner(dataset)
    assert learner.config.total_updates > 12
    learner.fit(dataset, 12, batch_size=16, progress=False)
    assert_equal(learner, by_hand(dataset, 12, total_updates=12))
    learner.fit(dataset, 4, batch_size=16, progress=False)
    assert (learner.updates, learner.config.total_updates) == (16, 16)


def test_updates_before_the_first_fit_do_not_choose_the_length() -> None:
    dataset = make_dataset()
    learner = make_learner(dataset)
    learner.update_from(dataset, 2, batch_size=16)
    learner.fit(dataset, 40, batch_size=16, progress=False)
    assert (learner.updates, learner.config.total_updates) == (42, 42)
    assert learner.config.guided_from < 42
    with pytest.warns(
        TrainingWarning, match=r"3 of 3 updates learn nothing.*total_updates=42, and"
    ):
        learner.update_from(dataset, 3, batch_size=16)
    learner.set_total_updates_(46)
    with pytest.warns(TrainingWarning, match=r"1 of 2 updates .*set_total_updates_\(47\)"):
        learner.update_from(dataset, 2, batch_size=16)


def test_a_length_that_was_left_open_is_open_in_a_file_too(tmp_path: Path) -> None:
    dataset = make_dataset()
    loaded = GTPLearner.load(make_learner(dataset).save(tmp_path / "new.zip"))
    again = GTPLearner.load(loaded.save(tmp_path / "again.zip"))
    again.fit(dataset, 12, batch_size=16, progress=False)
    assert_equal(again, by_hand(dataset, 12, total_updates=12))
    default = GTPLearnerConfig().total_updates
    chosen = GTPLearner.load(make_learner(dataset, total_updates=default).save(tmp_path / "b.zip"))
    chosen.fit(dataset, 2, batch_size=16, progress=False)
    assert chosen.config.total_updates == default


def test_a_length_that_was_chosen_stays_until_it_is_too_short() -> None:
    dataset = make_dataset()
    learner = make_learner(dataset, total_updates=12)
    learner.fit(dataset, 5, batch_size=16, progress=False)
    assert_equal(learner, by_hand(dataset, 5, total_updates=12))
    learner.fit(dataset, 9, batch_size=16, progress=False)
    assert (learner.updates, learner.config.total_updates) == (14, 14)


def test_a_callback_comes_at_multiples_and_at_the_end_and_may_end_it() -> None:
    dataset, seen = make_dataset(), []

    def look(learner: GTPLearner, metrics: dict[str, float]) -> dict[str, float]:
        seen.append(learner.updates)
        return metrics  # true as a condition, and no True

    learner = make_learner(dataset, critic=False)
    last = learner.fit(dataset, 7, batch_size=16, progress=False, callback=look, every=3)
    assert seen == [3, 6, 7]
    learner.fit(dataset, 4, batch_size=16, progress=False, callback=look, every=3)
    assert seen == [3, 6, 7, 9, 11]
    stopped = make_learner(dataset, critic=False)
    done = lambda learner, _: np.bool_(learner.updates >= 2)  # noqa: E731
    metrics = stopped.fit(dataset, 7, batch_size=16, progress=False, callback=done, every=1)
    assert stopped.updates == 2
    assert metrics.keys() == last.keys()


def test_ctrl_c_leaves_a_whole_learner(tmp_path: Path) -> None:
    dataset = make_dataset()

    def interrupt(learner: GTPLearner, _: dict[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)

    learner = make_learner(dataset, total_updates=12)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(dataset, batch_size=16, progress=False, callback=interrupt, every=5)
    assert_equal(learner, by_hand(dataset, 5, total_updates=12))
    resumed = GTPLearner.load(learner.save(tmp_path / "stopped.zip"))
    with StopSignal() as stop:  # whose flag says what happened
        metrics = resumed.fit(dataset, batch_size=16, progress=False, callback=interrupt, every=8)
    assert stop
    assert resumed.updates == 8
    assert metrics
    resumed.fit(dataset, batch_size=16, progress=False)
    assert_equal(resumed, by_hand(dataset, 12, total_updates=12))


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    dataset = make_dataset()
    learner = make_learner(dataset, critic=False)
    learner.fit(dataset, 3, batch_size=16)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == "fit: 3 updates to do"
    assert lines[1].startswith("fit: 3 of 3 updates, ")
    assert "actor_loss" in lines[1]
    learner.fit(dataset, batch_size=16, progress=False)
    assert capsys.readouterr().err == ""


def test_a_terminal_without_tqdm_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setitem(sys.modules, "tqdm", None)  # as if it were not installed
    progress = Progress("fit", 2, stream=(terminal := Terminal()))
    progress.start(0)
    progress.advance(2)
    progress.close()
    assert "2 of 2 updates" in terminal.getvalue()


@pytest.mark.parametrize(
    ("other", "options", "error"),
    [
        (make_dataset(obs_dim=4), {}, ShapeError),
        (make_dataset(reward=None), {}, DataError),
        (None, {}, DataError),
        (make_dataset(), {"batch_size": 0}, DataError),
        (make_dataset(), {"updates": 0}, ValueError),
        (make_dataset(), {"every": 0}, ValueError),
        (make_dataset(), {"every": None}, ValueError),
        (make_dataset(), {"updates": 2**70}, ValueError),
        (make_dataset(), {"callback": "print"}, DataError),
    ],
)
def test_what_fits_not_is_refused_before_anything_changes(
    other: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    learner = make_learner(make_dataset())
    before = copy.deepcopy(learner.state_dict()), learner.config
    with pytest.raises(error):
        learner.fit(other, **{"updates": 7, **options}, progress=False)
    assert learner.config == before[1]
    assert learner.updates == 0


def test_data_in_other_units_than_the_learner_acts_in_is_refused() -> None:
    """Else `predict` would act in the old units what was learned in the new ones."""
    learner = make_learner(make_dataset())
    other = make_dataset(action=np.zeros((60, 2)), low=[-5.0, -5.0], high=[5.0, 5.0])
    with pytest.raises(DataError, match=r"other bounds.*learner\.action_scaler = dataset"):
        learner.fit(other, 3, progress=False)
    assert (learner.updates, "total_updates" in learner.config.model_fields_set) == (0, False)
    both = MultiSeedLearner([make_learner(make_dataset())])
    for train in (learner.update_from, both.update_from):
        with pytest.raises(DataError, match="other bounds"):
            train(other, 3, batch_size=16)
    assert (learner.updates, both.updates) == (0, 0)
    learner.action_scaler = other.action_scaler
    learner.fit(other, 3, batch_size=16, progress=False)
    column = np.zeros((60, 1))
    turned = [make_dataset(obs={"a": column, "b": column, "c": column}) for _ in range(2)]
    with pytest.raises(DataError, match="other observations"):
        make_learner(turned[0]).fit(make_dataset(), 3, progress=False)
    with pytest.raises(DataError, match="other observations"):
        make_learner(turned[0]).update_from(make_dataset(), 3)
    make_learner(turned[0]).fit(turned[1], 3, batch_size=16, progress=False)


def test_a_critic_does_not_go_on_with_another_discount_factor() -> None:
    first, other = make_dataset(gamma=0.9), make_dataset(gamma=0.99)
    learner = make_learner(first)
    with pytest.raises(DataError, match=r"another discount factor: got gamma=0\.99, expected 0\.9"):
        learner.fit(other, 3, progress=False)
    with pytest.raises(DataError, match="another discount factor"):
        learner.update_from(other, batch_size=16)
    assert learner.updates == 0
    with pytest.raises(AttributeError, match="gamma"):
        other.gamma = 0.9  # its discounts would stay
    make_learner(first, critic=False).fit(other, 3, batch_size=16, progress=False)


def test_a_learner_that_was_built_by_dimensions_takes_the_units_of_its_data() -> None:
    dataset = make_dataset(obs={"a": np.zeros((60, 2)), "b": np.ones((60, 1))})
    learner = GTPLearner.build(3, 2, make_config())
    learner.fit(dataset, 3, batch_size=16, progress=False)
    assert (learner.action_scaler, learner.layout) == (dataset.action_scaler, dataset.layout)
    action = learner.predict({"b": np.zeros(1), "a": np.zeros(2)})
    assert (LOW <= action).all()
    assert (action <= HIGH).all()


def test_a_broken_learner_does_not_train() -> None:
    dataset = make_dataset()
    learner = make_learner(dataset)
    learner.broken = "an error"
    with pytest.raises(BrokenLearnerError):
        learner.fit(dataset, 1, progress=False)


def test_training_that_diverges_is_noticed_where_metrics_are_looked_at() -> None:
    dataset = make_dataset()
    learner = make_learner(dataset, critic=False, actor_lr=1e12, lr_schedule="constant")
    with pytest.raises(NonFiniteError):
        learner.fit(dataset, 40, batch_size=16, progress=False, every=10)


def test_predict_acts_in_the_box_for_one_or_several_arrays_or_tensors() -> None:
    dataset = make_dataset()
    learner, box = make_learner(dataset), Box(LOW.astype(np.float32), HIGH.astype(np.float32))
    rows = np.random.default_rng(1).normal(scale=100, size=(200, 3))
    several = learner.predict(rows)
    assert several.shape == (200, 2)
    assert several.dtype == np.float32
    assert all(box.contains(action) for action in several)
    one = learner.predict(rows[0])
    assert one.shape == (2,)
    assert box.contains(one)
    tensor = torch.from_numpy(rows)
    assert isinstance(learner.predict(tensor), torch.Tensor)
    assert learner.predict(tensor[0]).shape == (2,)
    expected = dataset.action_scaler.to_box(learner.act(tensor.float(), deterministic=True))
    assert torch.equal(learner.predict(tensor, deterministic=True), expected)
    assert np.array_equal(learner.predict(rows, deterministic=True), expected.numpy())
    assert learner.predict(rows.tolist()).shape == (200, 2)
    assert learner.predict(np.empty((0, 3))).shape == (0, 2)


def test_predict_samples_unless_it_is_told_otherwise() -> None:
    learner, obs = make_learner(make_dataset()), np.zeros(3)
    drawn = [learner.predict(obs) for _ in range(2)]
    assert not np.array_equal(*drawn)
    seeded = [learner.predict(obs, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert np.array_equal(*seeded)
    assert np.array_equal(*(learner.predict(obs, deterministic=True) for _ in range(2)))
    best = learner.predict(obs, candidates=8, generator=torch.Generator().manual_seed(3))
    assert best.shape == (2,)


def test_predict_takes_mappings_in_any_order_with_parts_that_the_data_had_not() -> None:
    rng = np.random.default_rng(0)
    parts = {"joints": rng.normal(size=(60, 2, 2)), "goal": rng.normal(size=(60, 3))}
    dataset = make_dataset(obs=parts)
    learner = make_learner(dataset)
    seen = {"time": 1.0, "joints": parts["joints"][:4], "goal": parts["goal"][:4]}
    flat = dataset.layout.flatten({k: torch.from_numpy(parts[k][:4]) for k in parts})
    expected = dataset.action_scaler.to_box(learner.act(flat, deterministic=True)).numpy()
    assert np.array_equal(learner.predict(seen, deterministic=True), expected)
    one = {"joints": parts["joints"][0], "goal": torch.from_numpy(parts["goal"][0])}
    with pytest.raises(ShapeError, match="arrays and tensors"):
        learner.predict(one)
    one["goal"] = parts["goal"][0]
    assert np.allclose(learner.predict(one, deterministic=True), expected[0], atol=1e-5)
    with pytest.raises(ShapeError, match=r"`obs\['goal'\]` is missing"):
        learner.predict({"joints": one["joints"]})
    with pytest.raises(ShapeError, match="wrong structure"):
        learner.predict(np.zeros(7))
    with pytest.raises(ShapeError, match="one and several"):
        learner.predict({"joints": parts["joints"][:4], "goal": parts["goal"][0]})


def test_predict_of_chunks_and_histories_is_what_an_exported_file_does() -> None:
    dataset = make_dataset().with_history(2).with_chunks(3)
    learner = make_learner(dataset)
    several = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    chunks = learner.predict(several, deterministic=True)
    assert chunks.shape == (5, 3, 2)
    assert (chunks >= LOW.astype(np.float32)).all()
    assert (chunks <= HIGH.astype(np.float32)).all()
    assert np.allclose(learner.predict(several[0], deterministic=True), chunks[0], atol=1e-4)
    plan = Plan(source_of(learner))
    assert plan.input_shapes == [several.shape[1:]]
    assert plan.result_shape == chunks.shape[1:]
    flat = torch.from_numpy(several.reshape(5, 6))
    steps = learner.act(flat, deterministic=True).view(5, 3, 2)
    assert np.array_equal(chunks, dataset.action_scaler.to_box(steps).numpy())
    with pytest.raises(ShapeError, match=r"looks at 2 observations.*learner\.player"):
        learner.predict(np.zeros(3))


NUMBERS: list[tuple[Any, str]] = [
    (np.array([0.0, np.nan, 0.0]), "nan"),
    (np.array([0.0, np.inf, 0.0]), "inf"),
    (torch.tensor([[0.0, torch.nan, 0.0]]), "nan"),
    (np.array([0.0, 1e300, 0.0]), "inf"),  # in float32
    (np.zeros(3, complex), "real numbers"),
    (torch.zeros(3, dtype=torch.complex64), "real numbers"),
    (np.ma.masked_equal([0.0, 5.0, 1.0], 5.0), "masked"),
    (["a", "b", "c"], "numbers"),
    (None, "wrong shape"),
]


@pytest.mark.parametrize(("obs", "word"), NUMBERS)
def test_observations_that_are_no_numbers_are_refused(obs: Any, word: str) -> None:
    with pytest.raises((DataError, ShapeError), match=word):
        make_learner(make_dataset()).predict(obs)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_act_refuses_what_is_not_finite(bad: float, kind: Any) -> None:
    obs = kind(np.array([[0.0, bad, 0.0]], np.float32))
    for options in ({}, {"deterministic": True}, {"candidates": 4}):
        with pytest.raises(DataError, match="not finite"):
            make_learner(make_dataset()).act(obs, **options)


def test_act_takes_arrays_of_any_real_type_and_gives_arrays() -> None:
    learner = make_learner(make_dataset())
    rows = np.arange(6).reshape(2, 3)
    expected = learner.act(torch.from_numpy(rows).float(), deterministic=True)
    arrays: list[npt.NDArray[Any]] = [rows, rows.astype(np.float64), rows.astype(">f4"), rows[:, :]]
    arrays[-1].setflags(write=False)
    for array in arrays:
        action = learner.act(array, deterministic=True)
        assert isinstance(action, np.ndarray)
        assert np.array_equal(action, expected.numpy())
    again = act(learner.target_actor, None, rows, deterministic=True)
    assert np.array_equal(again, expected.numpy())
    with pytest.raises(ShapeError):
        learner.act(np.zeros(3))
    with pytest.raises(DataError, match="no tensor"):
        learner.act([[0.0, 0.0, 0.0]])  # type: ignore[call-overload]


@pytest.mark.parametrize("history", [1, 2])
@pytest.mark.parametrize("value", [1e37, -3e38])
def test_an_observation_too_large_for_an_action_is_told_at_every_door(
    value: float, history: int
) -> None:
    """Divided by a small deviation it is infinite, and NaN goes through clipping to the Box."""
    dataset = make_dataset().with_history(history)
    config = make_config(critic=False)
    config = config.replace(actor=config.actor.replace(history=history))
    learner = GTPLearner.from_dataset(dataset, config)
    learner.set_observation_statistics_(torch.zeros(3 * history), torch.full((3 * history,), 1e-3))
    past = (history,) if history > 1 else ()
    one = np.zeros((*past, 3))
    far, large = one.copy(), one.copy()
    far[..., 0], large[..., 0] = value, 1e20
    match = "`action` is not finite: got nan at row {} of {}.*outside of what the policy was"
    for options in ({"deterministic": True}, {}, {"candidates": 1}):
        assert np.isfinite(learner.predict(large, **options)).all()
        with pytest.raises(DataError, match=match.format(0, 1)):
            learner.predict(far, **options)
        with pytest.raises(DataError, match=match.format(1, 3)):
            learner.predict(np.stack([large, far, one]), **options)
        with pytest.raises(DataError, match=match.format(0, 1)):
            learner.predict(torch.from_numpy(far), **options)
    with pytest.raises(DataError, match=match.format(0, 1)):
        learner.act(far.reshape(1, -1))
    player = learner.player()
    assert player.act(large[-1:] if past else large[None]).isfinite().all()
    with pytest.raises(DataError, match=match.format(0, 1)):
        player.act(far[-1:] if past else far[None])


def test_half_precision_stays_in_the_box() -> None:
    learner = make_learner(make_dataset()).to(dtype=torch.bfloat16)
    rows = np.random.default_rng(1).normal(scale=100, size=(100, 3))
    action = learner.predict(rows)
    assert action.dtype == np.float32
    assert (action >= LOW.astype(np.float32)).all()
    assert (action <= HIGH.astype(np.float32)).all()
    assert learner.act(rows).dtype == np.float32


def test_a_learner_without_bounds_says_what_to_do() -> None:
    learner = GTPLearner.build(3, 2, make_config())
    with pytest.raises(DataError, match=r"learner\.action_scaler = ActionScaler\(low, high\)"):
        learner.predict(np.zeros(3))
    learner.action_scaler = ActionScaler(LOW, HIGH)
    assert learner.predict(np.zeros(3)).shape == (2,)


@pytest.mark.parametrize("name", ["policy.zip", "policy"])
def test_save_and_load_keep_everything(tmp_path: Path, name: str) -> None:
    dataset = make_dataset(obs={"a": np.zeros((60, 2)), "b": np.ones((60, 1))})
    learner = make_learner(dataset)
    learner.fit(dataset, 3, batch_size=16, progress=False)
    assert learner.save(tmp_path / name) == tmp_path / name
    loaded = GTPLearner.load(str(tmp_path / name), device="cpu")
    assert_equal(loaded, learner)
    assert loaded.full_config == learner.full_config
    assert (loaded.action_scaler, loaded.layout) == (dataset.action_scaler, dataset.layout)
    obs = {"a": np.zeros(2), "b": np.zeros(1)}
    actions = [x.predict(obs, deterministic=True) for x in (learner, loaded)]
    assert np.array_equal(*actions)
    for other in (learner, loaded):
        other.fit(dataset, 2, batch_size=16, progress=False)
    assert_equal(loaded, learner)


def test_what_is_said_at_saving_counts_before_what_the_learner_knows(tmp_path: Path) -> None:
    learner, other = make_learner(make_dataset()), ActionScaler([-1.0, -1.0], [1.0, 1.0])
    path = save_checkpoint(tmp_path / "a.zip", learner, action_scaler=other)
    checkpoint = load_checkpoint(path)
    assert checkpoint.action_scaler == checkpoint.learner.action_scaler == other
    assert GTPLearner.load(path).action_scaler == other
    bare = save_checkpoint(tmp_path / "b.zip", GTPLearner.build(3, 2, make_config()))
    assert GTPLearner.load(bare).action_scaler is None


def test_who_goes_on_from_an_actor_knows_its_units() -> None:
    clone = make_learner(make_dataset(), critic=False)
    learner = GTPLearner.from_actor(clone, GTPConfig(critic=QEnsembleConfig(hidden=(16,))))
    obs = np.zeros(3)
    assert np.array_equal(*(x.predict(obs, deterministic=True) for x in (clone, learner)))
    assert np.array_equal(
        copy.deepcopy(clone).predict(obs, deterministic=True),
        clone.predict(obs, deterministic=True),
    )
