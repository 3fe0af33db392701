"""Peers under the rules of the runs that they are compared with; d3rlpy where it is installed."""

import importlib.util
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from benchmarks.peers import (
    Peer,
    PeerConfig,
    build,
    following_actions,
    peer_configs,
    peer_parser,
    run_peer,
)
from gtp_experiments import EvaluationConfig
from gtp_policy import OfflineDataset

needs_d3rlpy = pytest.mark.skipif(
    importlib.util.find_spec("d3rlpy") is None,
    reason="d3rlpy needs an older gymnasium: PYTHONPATH=outputs/peers after make bench-peers",
)


def config_of(peer: str, dataset: str = "a/b-v0", **fields: Any) -> PeerConfig:
    defaults: dict[str, Any] = {"updates": 100, "method": peer}
    return PeerConfig(**{**defaults, **fields}, peer=peer, dataset=dataset)


@pytest.mark.parametrize(
    ("peer", "group"), [("bc", "2ebb18b5"), ("td3_bc", "99e7fa5a"), ("iql", "ff80daab")]
)
def test_runs_of_earlier_versions_keep_their_names(peer: str, group: str) -> None:
    assert config_of(peer).group == group
    assert config_of(peer, target_rate=0.05).group != group
    assert config_of(peer, lr_schedule="cosine").group != group


def test_the_command_line_reaches_every_choice() -> None:
    words = "--peer rebrac --dataset a/b-v0 --updates 100 --out runs --seeds 3 --target-rate 0.05"
    words += " --lr-schedule cosine --actor-beta 0.1 --critic-beta 0.2"
    (config,) = peer_configs(peer_parser().parse_args(words.split()))
    assert config == config_of(
        "rebrac", seed=3, target_rate=0.05, lr_schedule="cosine", actor_beta=0.1, critic_beta=0.2
    )


def test_the_following_action_is_the_episodes_own() -> None:
    """Rows 0-2 terminate, 3-4 are cut, 5-6 are left unfinished."""
    dataset = OfflineDataset.from_arrays(
        obs=np.zeros((7, 1)),
        action=np.linspace(-0.6, 0.6, 7)[:, None],
        reward=np.zeros(7),
        next_obs=np.zeros((7, 1)),
        terminated=[0, 0, 1, 0, 0, 0, 0],
        truncated=[0, 0, 0, 0, 1, 0, 0],
        low=[-1.0],
        high=[1.0],
    )
    before = dataset.truncated.copy()
    actions, kept = following_actions(dataset)
    assert kept.tolist() == [0, 1, 2, 3, 5]
    own = dataset.transitions.action
    for row in (0, 1, 3, 5):
        assert actions[row] == own[row + 1]
    np.testing.assert_array_equal(dataset.truncated, before)


@needs_d3rlpy
@pytest.mark.slow
@pytest.mark.global_rng
@pytest.mark.filterwarnings("ignore")
class TestD3rlpy:
    """With the library itself."""

    @pytest.mark.parametrize("peer", get_args(Peer))
    def test_equal_rules_reach_the_library(self, peer: str) -> None:
        config = config_of(
            peer, updates=10, target_rate=0.05, lr_schedule="cosine", hidden=(8, 9, 10), gamma=0.9
        )
        made = build(config, 3, 2)
        linear = [m for m in made.impl.policy.modules() if isinstance(m, torch.nn.Linear)]
        assert [layer.out_features for layer in linear][:3] == [8, 9, 10]
        assert made.config.batch_size == config.batch_size
        if peer != "bc":
            critic = made.impl.q_function[0]
            linear = [m for m in critic.modules() if isinstance(m, torch.nn.Linear)]
            assert [layer.out_features for layer in linear] == [8, 9, 10, 1]
            norms = [m for m in critic.modules() if isinstance(m, torch.nn.LayerNorm)]
            assert bool(norms) == (peer == "rebrac")
            assert (made.config.tau, made.config.gamma) == (0.05, 0.9)

    @pytest.mark.parametrize("peer", get_args(Peer))
    @pytest.mark.parametrize("schedule", ["constant", "cosine"])
    def test_the_learning_rate_ends_where_the_run_does(
        self, peer: str, schedule: str, line_data: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        import benchmarks.peers as module

        made: list[Any] = []

        def kept(*args: Any) -> Any:
            made.append(build(*args))
            return made[-1]

        monkeypatch.setattr(module, "build", kept)
        run_peer(self.small(peer, line_data, lr_schedule=schedule), tmp_path)
        modules = made[0].impl.modules
        optimisers = {k: v for k, v in vars(modules).items() if k.endswith("optim")}
        assert optimisers
        for name, wrapper in optimisers.items():
            wanted = 0.0 if schedule == "cosine" else 3e-4
            rate = wrapper.optim.param_groups[0]["lr"]
            assert rate == pytest.approx(wanted, abs=1e-9), name

    @pytest.mark.parametrize("peer", get_args(Peer))
    def test_a_run_is_a_function_of_its_seed(
        self, peer: str, line_data: Path, tmp_path: Path
    ) -> None:
        config = self.small(peer, line_data)
        first, again = (run_peer(config, tmp_path / str(i)) for i in range(2))
        assert first.status == "finished"
        assert first.evaluations == again.evaluations
        assert [e.update for e in first.evaluations] == [20, 40]
        other = run_peer(config.replace(seed=1), tmp_path / "other")
        assert other.evaluations[-1].returns != first.evaluations[-1].returns

    @staticmethod
    def small(peer: str, line_data: Path, **fields: Any) -> PeerConfig:
        evaluation = EvaluationConfig(environment="line_world:make", every=20, episodes=3)
        return config_of(
            peer,
            str(line_data),
            updates=40,
            batch_size=16,
            hidden=(16,),
            log_every=20,
            evaluation=evaluation,
            **fields,
        )
