"""What users get wrong at the walls of the core ends in an error of ours, which says what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gtp_policy import (
    ActionScaler,
    AdvantageWeighter,
    CheckpointFolder,
    FlowMapActor,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    MultiSeedLearner,
    ObservationLayout,
    OfflineDataset,
    QEnsemble,
    QEnsembleConfig,
    Transitions,
    latest_valid,
    load_checkpoint,
    save_checkpoint,
)
from gtp_policy.errors import GTPError

SMALL = GTPConfig(
    actor=FlowMapActorConfig(hidden=(8,), time_dim=4, steps=2),
    critic=QEnsembleConfig(hidden=(8,)),
    learner=GTPLearnerConfig(total_updates=20),
)
ARRAYS: dict[str, Any] = {
    **{name: np.zeros((8, 3)) for name in ("obs", "next_obs")},
    **{name: np.zeros(8) for name in ("reward", "terminated", "truncated")},
    **{"action": np.zeros((8, 2)), "low": [-1, -1], "high": [1, 1]},
}
DATA = OfflineDataset.from_arrays(**ARRAYS)
BATCH, OBS = DATA.transitions, torch.zeros(1, 3)


def arrays(**changes: Any) -> Callable[[], Any]:
    return lambda: OfflineDataset.from_arrays(**(ARRAYS | changes))


MISUSES: dict[str, Callable[[], Any]] = {
    **{
        f"dimension {n!r}": lambda n=n: GTPLearner.build(n, 2, SMALL)
        for n in (0, -1, 3.0, "3", None, True)
    },
    **{
        f"device {d!r}, {name}": lambda d=d, use=use: use(d)
        for d in ("gpu", "cuda:99", 3.5)
        for name, use in {
            "learner": lambda d: GTPLearner.build(3, 2, SMALL, device=d),
            "data": lambda d: OfflineDataset.from_arrays(**ARRAYS, device=d),
            "data.to": DATA.to,
            "checkpoint": lambda d: load_checkpoint("nowhere", device=d),
        }.items()
    },
    **{
        f"batch of {type(b).__name__}": lambda b=b: GTPLearner.build(3, 2, SMALL).update(b)
        for b in (None, tuple(BATCH), DATA, {}, torch.zeros(3))
    },
    **{
        f"batch with {name}": lambda obs=obs: GTPLearner.build(3, 2, SMALL).update(
            BATCH._replace(obs=obs)
        )
        for name, obs in {
            "numpy": np.zeros((8, 3)),
            "a list": [[0.0] * 3] * 8,
            "a sparse tensor": BATCH.obs.to_sparse(),
            "float64": BATCH.obs.double(),
            "integers": BATCH.obs.long(),
            "complex numbers": BATCH.obs.to(torch.complex64),
            "another device": BATCH.obs.to("meta"),
            "a scalar": torch.tensor(0.0),
        }.items()
    },
    **{
        f"update_from {d!r:.20}": lambda d=d: GTPLearner.build(3, 2, SMALL).update_from(d)
        for d in (None, BATCH, ARRAYS)
    },
    **{
        f"act on {name}": lambda obs=obs: GTPLearner.build(3, 2, SMALL).act(obs)
        for name, obs in {
            "nothing": None,
            "a row of numpy": np.zeros(3),
            "text of numpy": np.array([["a", "b", "c"]]),
            "a list": [[0, 0, 0]],
            "one row": torch.zeros(3),
            "NaN": torch.full((1, 3), torch.nan),
            "infinity": torch.full((1, 3), -torch.inf),
        }.items()
    },
    **{
        f"statistics of {type(x).__name__}": lambda x=x: GTPLearner.build(
            3, 2, SMALL
        ).set_observation_statistics_(x, x)
        for x in (None, [1.0] * 3, np.ones(3), torch.ones(2))
    },
    "statistics of 1e39": lambda: GTPLearner.build(3, 2, SMALL).set_observation_statistics_(
        torch.full((3,), 1e39, dtype=torch.float64), torch.ones(3)
    ),
    "advantage of None": lambda: GTPLearner.build(3, 2, SMALL).advantage(None, None),  # type: ignore[arg-type]
    "critic of numpy": lambda: QEnsemble(3, 2)(np.zeros((1, 3)), np.zeros((1, 2))),
    "actor of numpy": lambda: FlowMapActor(3, 2)(np.zeros((1, 3)), OBS, OBS[0], OBS[0]),
    "weights of numpy": lambda: AdvantageWeighter()(np.zeros(3)),
    "weights of integers": lambda: AdvantageWeighter()(torch.zeros(3).long()),
    "no dataset": lambda: GTPLearner.from_dataset(ARRAYS),  # type: ignore[arg-type]
    "no batches": lambda: MultiSeedLearner([GTPLearner.build(3, 2, SMALL)]).update([None]),  # type: ignore[list-item]
    "gamma of text": arrays(gamma="0.9"),
    "gamma of None": arrays(gamma=None),
    "gamma above 1": arrays(gamma=1.1),
    "masked rewards": arrays(reward=np.ma.masked_equal(np.zeros(8), 0)),
    "bounds of text": arrays(low="a"),
    "bounds of None": arrays(low=None),
    "scaler of a list": lambda: ActionScaler([-1], [1]).to_unit([0.0]),  # type: ignore[type-var]
    **{f"layout {x!r}": lambda x=x: ObservationLayout(x) for x in (None, 3, "ab", (1.5,), (-1,))},
    **{f"flat {x!r}": lambda x=x: ObservationLayout((3,)).flatten(x) for x in (None, [1, 2, 3], 0)},
    "unflat None": lambda: ObservationLayout((3,)).unflatten(None),  # type: ignore[type-var]
    "keep of text": lambda: CheckpointFolder("x", keep="3"),  # type: ignore[arg-type]
    "keep of 1.5": lambda: CheckpointFolder("x", keep=1.5),  # type: ignore[arg-type]
    **{
        f"save with {name}": lambda options=options: save_checkpoint(
            "nowhere/a", GTPLearner.build(3, 2, SMALL), **options
        )
        for name, options in {
            "a number for bounds": {"action_scaler": 3},
            "a tuple for a layout": {"layout": (3,)},
            "a list for metadata": {"metadata": [1]},
            "other bounds": {"action_scaler": ActionScaler([-1], [1])},
            "another layout": {"layout": ObservationLayout((7,))},
            "keys of numbers": {"metadata": {1: 2}},
        }.items()
    },
    "a name with a zero byte": lambda: save_checkpoint("a\0b", GTPLearner.build(3, 2, SMALL)),
    "no checkpoint": lambda: load_checkpoint("nowhere"),
}


@pytest.mark.parametrize("misuse", MISUSES.values(), ids=MISUSES)
def test_a_misuse_is_an_error_that_says_what_was_expected(
    misuse: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((GTPError, ValueError), match="expected"):
        misuse()
    assert not list(tmp_path.iterdir())


def test_no_observation_gives_no_action() -> None:
    learner = GTPLearner.build(3, 2, SMALL)
    for deterministic in (False, True):
        assert learner.act(torch.zeros(0, 3), deterministic=deterministic).shape == (0, 2)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    assert latest_valid(path) is None
    assert isinstance(BATCH, Transitions)
