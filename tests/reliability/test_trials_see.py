"""What the trials are worth: each finds the defect it looks for where there is one."""

import contextlib
import io
import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gtp_policy import GTPLearner, OfflineDataset
from gtp_policy import learner as learner_module
from gtp_policy._engine import by_hand
from gtp_policy.checkpoint import bundle, document, files
from gtp_policy.errors import CheckpointError
from tests.reliability import (
    bad_data,
    canaries,
    faults,
    forged_data,
    forgeries,
    interruptions,
    misuse,
    mutations,
    oracle,
    repeatability,
    saves,
    wholeness,
)
from tests.reliability.bootstrapping import TOLERANCE, exact
from tests.reliability.outcome import Outcome, unsaid
from tests.reliability.small import differences, flat_state, make_config, same_bits


def test_an_outcome_counts() -> None:
    outcome = Outcome()
    outcome.add("good")
    outcome.add("bad", "broke")
    assert (outcome.count, outcome.passed, outcome.failures) == (2, 1, ["bad: broke"])


def test_a_message_says_what_was_got_and_expected() -> None:
    assert unsaid(ValueError("got 1, expected 2")) is None
    assert "`obs`" in str(unsaid(ValueError("got 1, expected 2"), "`obs`"))
    assert "expected" in str(unsaid(ValueError("got 1")))


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (torch.tensor([0.0, 1.0]), True),
        (torch.tensor([-0.0, 1.0]), False),
        (torch.tensor([0.0, 1.0 + 1e-7]), False),
        (torch.tensor([0.0, 1.0], dtype=torch.float64), False),
        (torch.tensor([[0.0, 1.0]]), False),
    ],
)
def test_states_are_compared_bit_by_bit(other: Tensor, same: bool) -> None:
    assert same_bits(torch.tensor([0.0, 1.0]), other) == same


def test_a_state_holds_all_that_an_update_changes() -> None:
    """Parameters, target networks, both moments, the optimiser's step and the counter."""
    learner = GTPLearner.build(bad_data.OBS, bad_data.ACT, make_config(200))
    before = {name: value.clone() for name, value in flat_state(learner).items()}
    repeatability.train(learner, repeatability.make_dataset(), 1)
    changed = " ".join(differences(before, flat_state(learner)))
    for part in ("/actor.", "/critic.", "/target_actor.", "/target_critic.", "updates"):
        assert part in changed
    for part in ("actor/state/0/exp_avg", "critic/state/0/exp_avg_sq", "critic/state/0/step"):
        assert part in changed


@pytest.mark.xdist_group("killing")
def test_a_run_that_ignores_its_signals_is_found() -> None:
    def kill(process: int, number: int) -> None:
        os.kill(process, signal.SIGKILL)

    outcome = interruptions.stopped_by_signal(1, send=kill)
    assert len(outcome.failures) == 1


def _in_place(directory: str, learner: GTPLearner) -> Path:
    """Writes a good zip, but straight over the one that is there."""
    path = Path(directory, "policy.zip")
    files = document.files_of(learner, None, None, None)
    manifest = bundle._make_manifest(files, "another program")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, bundle._zipped({**files, canaries.MANIFEST: manifest}))
        os.fsync(descriptor)
        os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path}: got {error}, expected a place that works.") from error
    return path


def test_a_writer_that_is_not_atomic_is_found() -> None:
    outcome = faults.failing_disk(writers={"in place": _in_place})
    assert any("unfinished" in failure for failure in outcome.failures)


def test_a_writer_that_never_flushes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes) -> None:
        with open(path, "xb") as file:
            file.write(data)

    monkeypatch.setattr(bundle, "_write_file", write)
    outcome = faults.failing_disk(1, writers={"zip": faults.WRITERS["zip"]})
    assert any("never calls write" in failure for failure in outcome.failures)


def test_a_loader_that_verifies_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_sha256", lambda data: "")
    outcome = mutations.mutated(200)
    assert sum("silently different" in failure for failure in outcome.failures) > 10


def test_memory_is_measured() -> None:
    with mutations.peak_memory() as peak:
        del_me = np.ones(50 * 2**17)
        del del_me
    if not mutations._can_reset():
        pytest.skip("this system does not tell the peak of the resident memory")
    assert 45 < peak[0] / 2**20 < 100


def test_a_loader_that_unpickles_is_found() -> None:
    def load(path: Path) -> Any:
        return pickle.loads(path.read_bytes()) if path.is_file() else None  # noqa: S301

    outcome = canaries.hostile_files(1, doors={"load_checkpoint": load})
    assert "executed" in outcome.failures[0]
    assert outcome.worst.startswith("1 executed")


def test_a_loader_that_waits_for_ever_is_found() -> None:
    with pytest.raises(TimeoutError), canaries.time_limit(0.05):
        time.sleep(5)


def test_a_loader_that_repairs_in_silence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = OfflineDataset.from_arrays

    def repair(**given: Any) -> OfflineDataset:
        return genuine(
            **{k: np.nan_to_num(v) if k in bad_data.FIELDS else v for k, v in given.items()}
        )

    monkeypatch.setattr(bad_data.OfflineDataset, "from_arrays", repair)
    assert bad_data.not_finite(4).failures[0] == "obs nan one: was loaded"


def test_both_ends_of_the_three_states_differ() -> None:
    """The closed form itself: by hand for gamma = 1/2, and the two ends far apart."""
    assert exact(0.5, terminated=True).tolist() == [2.75, 3.5, 3.0]
    assert np.abs(exact(0.5, terminated=False) - [22 / 7, 30 / 7, 32 / 7]).max() < 1e-12
    apart = exact(0.5, terminated=False) - exact(0.5, terminated=True)
    assert apart.min() > 1000 * TOLERANCE


def test_an_update_that_changes_without_a_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def unmarked(learners: Any) -> Any:
        yield

    monkeypatch.setattr(learner_module, "changing", unmarked)
    changes = {"update": wholeness.CHANGES["update"]}
    outcome = wholeness.interrupted_changes(60, changes=changes)
    assert any("changed without a word" in failure for failure in outcome.failures)


def test_a_trainer_that_leaves_a_switch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def sloppy(precision: str) -> Any:
        torch.set_float32_matmul_precision("medium")
        yield

    monkeypatch.setattr(by_hand, "coarse_products", sloppy)
    try:
        assert wholeness.two_trainers(1, updates=2).failures
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_save_that_does_not_load_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_check_loads", lambda files, learner: None)
    outcome = saves.saves_load_again(30)
    assert any("does not load" in failure for failure in outcome.failures)


def test_a_reader_that_looks_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_LOOKS", 0)
    assert saves.reader_beside_writer(5).failures


def test_a_door_that_passes_raw_errors_is_found() -> None:
    def door(path: Path) -> Any:
        return json.loads(bundle.read_bundle(path, ["config.json"], limit={})[0]["config.json"])[
            "x"
        ]

    outcome = forgeries.forged_files(5, doors={"core: raw": door})
    assert any("KeyError" in failure for failure in outcome.failures)


def test_draws_from_one_shared_generator_are_found() -> None:
    learner, shared = repeatability.trained(), torch.Generator()

    def act(obs: Tensor, *, candidates: int, generator: torch.Generator) -> Tensor:
        shared.manual_seed(generator.initial_seed())
        time.sleep(0)  # another thread may come between
        return learner.act(obs, candidates=candidates, generator=shared)

    assert repeatability.concurrent_acts(2000, act=act).failures


def test_an_act_that_leaves_the_training_mode_is_found() -> None:
    def impure(learner: GTPLearner) -> Any:
        def act(obs: Tensor, **options: Any) -> Tensor:
            return learner.eval().act(obs, **options)

        return act

    outcome = repeatability.acting_is_pure(10, act=impure)
    assert any("training flags" in failure for failure in outcome.failures)


def test_a_process_that_depends_on_its_hash_seed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_a_fresh_process(count: int, updates: int, hash_seed: str) -> dict[str, dict[str, str]]:
        return json.loads(io.StringIO(f'{{"way": {{"weight": "{hash_seed}"}}}}').read())

    monkeypatch.setattr(repeatability, "_in_a_fresh_process", in_a_fresh_process)
    assert repeatability.same_seed_twice(1).failures


# Torch's own transforms and scripts warn of themselves when they are first used.
@pytest.mark.filterwarnings("ignore:The curriculum is too fine", "ignore:`torch.jit.script`")
def test_a_gradient_that_is_a_little_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = by_hand._Actors._distance

    def wrong(self: Any, residual: Tensor, power: float) -> tuple[Tensor, Tensor]:
        distance, gradient = right(self, residual, power)
        return distance, gradient * (1 + 1e-7)

    monkeypatch.setattr(by_hand._Actors, "_distance", wrong)
    outcome = oracle.engines_and_formulas(4)
    assert outcome.failures
    assert all("auto" in failure for failure in outcome.failures)


@pytest.mark.global_rng  # values that somebody may pass call anything
def test_an_entry_point_that_passes_raw_errors_is_found() -> None:
    plain = {"raw": misuse.Entry(lambda x: torch.zeros(3) @ x, {"x": torch.zeros(3)})}
    outcome = misuse.misused(entry_points=plain)
    assert any("RuntimeError" in failure for failure in outcome.failures)


OURS, HOST, OTHER = f"{misuse.OURS[1]}/a.py", "/x/tianshou/b.py", "/x/numpy/c.py"


@pytest.mark.parametrize(
    ("files", "excused"),
    [
        ((OURS, HOST), True),
        ((OURS, HOST, OTHER), True),  # what a host makes numpy raise
        ((OURS, OTHER), False),
        ((OURS,), False),
        ((HOST, OURS), False),  # a host calls what is ours
        ((OURS, HOST, OURS, OTHER), False),
    ],
)
def test_only_what_a_host_raises_is_excused(files: tuple[str, ...], excused: bool) -> None:
    inner: Any = None
    for file in reversed(files):  # each calls the next, and the last one raises
        names: dict[str, Any] = {"inner": inner}
        exec(compile("def call(x):\n return inner(x) if inner else [][0]", file, "exec"), names)
        inner = names["call"]
    outcome = misuse.misused(1, entry_points={"raw": misuse.Entry(inner, {"x": 0})})
    assert (outcome.failures == []) is excused


def test_a_loader_of_datasets_that_passes_raw_errors_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(path: Path) -> Any:
        with forged_data.h5py.File(path) as file:
            return [file[name][()] + 1 for name in forged_data.FIELDS if name in file]

    monkeypatch.setattr(forged_data, "load_d4rl_hdf5", trusting)
    outcome = forged_data.forged_datasets(40)
    assert outcome.failures
    assert all("D4RL" in failure for failure in outcome.failures)
