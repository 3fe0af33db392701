"""What is timed: this package, the naive transcription, other libraries, and your own code.

A contender is a function ``make(data, batch_size, device)``. ``data`` has the arrays ``obs``,
``action`` (in [-1, 1]), ``reward``, ``next_obs``, ``terminated`` and ``truncated`` in time order.
It returns a dict of callables: ``"update"``, without arguments, does one update including the
contender's own way to draw a minibatch; ``"act"`` takes float32 observations (n, O) and returns
actions (n, A), both as numpy arrays. Either may be missing. ``"sample"`` may be added: drawing a
minibatch alone.

``--peer NAME=PATH:MODULE:FUNCTION`` adds one from another repository: ``PATH`` is put first on
the import path while the module is imported.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.naive import NaiveGTP
from gtp_policy import (
    Curriculum,
    GTPConfig,
    GTPLearner,
    OfflineDataset,
    PolicyBaseline,
    QEnsembleConfig,
    Transitions,
    presets,
)

MAX_GRAD_NORM = 5.0
Data = dict[str, np.ndarray]
Peer = dict[str, Callable[..., Any]]
MakePeer = Callable[[Data, int, str], Peer]


@dataclasses.dataclass(frozen=True)
class Case:
    """The sizes that a cost depends on; the default is Hopper's, with the paper's networks."""

    obs_dim: int = 11
    action_dim: int = 3
    batch: int = 256
    width: int = 256
    steps: int = 5  # K
    samples: int = 1  # M
    device: str = "cpu"

    def but(self, **changes: Any) -> "Case":  # noqa: ANN401 - the fields' types
        """Returns the case with something changed."""
        return dataclasses.replace(self, **changes)


def naive(case: Case) -> NaiveGTP:
    """Returns the naive transcription."""
    return NaiveGTP(
        case.obs_dim,
        case.action_dim,
        width=case.width,
        steps=case.steps,
        samples=case.samples,
        max_grad_norm=MAX_GRAD_NORM,
        device=case.device,
    )


def config(case: Case) -> GTPConfig:
    """Returns this package's choices that are the naive transcription's."""
    hidden, paper = (case.width,) * 3, presets.paper_loss()
    return GTPConfig(
        actor=paper.actor.replace(hidden=hidden, steps=case.steps, sigma_data=0.5),
        critic=QEnsembleConfig(hidden=hidden, layer_norm=False),
        loss=paper.loss.replace(curriculum=Curriculum(start=40, end=40)),
        weighter=paper.weighter,
        learner=paper.learner.replace(
            baseline=PolicyBaseline(samples=case.samples), max_grad_norm=MAX_GRAD_NORM
        ),
    )


def library(case: Case) -> GTPLearner:
    """Returns the same of this package."""
    return GTPLearner.build(case.obs_dim, case.action_dim, config(case), device=case.device)


def batch(case: Case, seed: int = 0) -> Transitions:
    """Returns a random minibatch."""
    g = torch.Generator().manual_seed(seed)
    n = case.batch
    return Transitions(
        obs=torch.randn(n, case.obs_dim, generator=g),
        action=torch.rand(n, case.action_dim, generator=g) * 2 - 1,
        reward=torch.randn(n, generator=g),
        next_obs=torch.randn(n, case.obs_dim, generator=g),
        discount=torch.full((n,), 0.99),
    ).to(case.device)


def random_data(case: Case, rows: int) -> Data:
    """Returns random transitions in episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, rows + 1) % 1000 == 0
    ends[-1] = True
    return {
        "obs": rng.standard_normal((rows, case.obs_dim), dtype=np.float32),
        "action": rng.random((rows, case.action_dim), dtype=np.float32) * 2 - 1,
        "reward": rng.standard_normal(rows, dtype=np.float32),
        "next_obs": rng.standard_normal((rows, case.obs_dim), dtype=np.float32),
        "terminated": np.zeros(rows, np.bool_),
        "truncated": ends,
    }


def dataset(data: Data, device: str) -> OfflineDataset:
    """Returns the data as a dataset of this package."""
    bound = np.ones(data["action"].shape[1], np.float32)
    return OfflineDataset.from_arrays(**data, low=-bound, high=bound, device=device)


def make_library(case: Case) -> MakePeer:
    """Returns the maker of this package's contender."""

    def make(data: Data, batch_size: int, device: str) -> Peer:
        table, learner = dataset(data, device), library(case.but(device=device))
        g = torch.Generator().manual_seed(0)

        def sample() -> Transitions:
            return table.sample(batch_size, generator=learner.stream("batch"))

        def act(obs: np.ndarray) -> np.ndarray:
            # On the CPU, where environments are: the library decides whether to use the device.
            return learner.act(torch.from_numpy(obs), generator=g).numpy()

        def update() -> None:
            learner.update_from(table, batch_size=batch_size)

        return {"update": update, "act": act, "sample": sample}

    return make


def make_naive(case: Case) -> MakePeer:
    """Returns the maker of the naive transcription's contender."""

    def make(data: Data, batch_size: int, device: str) -> Peer:
        learner = naive(case.but(device=device))
        discount = 0.99 * (1 - data["terminated"].astype(np.float32))
        fields = [
            torch.from_numpy(np.array(array)).to(device)  # a copy: files may be mapped
            for array in (data["obs"], data["action"], data["reward"], data["next_obs"], discount)
        ]
        g = torch.Generator(device).manual_seed(0)

        def sample() -> list[torch.Tensor]:
            index = torch.randint(len(discount), (batch_size,), generator=g, device=device)
            return [field[index] for field in fields]

        return {"update": lambda: learner.update(*sample()), "act": learner.act, "sample": sample}

    return make


def tianshou_td3_bc(data: Data, batch_size: int, device: str) -> Peer:
    """Returns Tianshou's TD3+BC with its own defaults: two hidden layers of 256."""
    import gymnasium as gym
    from tianshou.algorithm import TD3BC
    from tianshou.algorithm.algorithm_base import policy_within_training_step
    from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch, ReplayBuffer
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorDeterministic, ContinuousCritic

    obs_shape, action_shape = data["obs"].shape[1:], data["action"].shape[1:]
    hidden = (256, 256)

    def policy() -> ContinuousDeterministicPolicy:
        net = Net(state_shape=obs_shape, hidden_sizes=hidden)
        actor = ContinuousActorDeterministic(preprocess_net=net, action_shape=action_shape)
        space = gym.spaces.Box(-1.0, 1.0, action_shape)
        return ContinuousDeterministicPolicy(actor=actor.to(device), action_space=space)

    def critic() -> ContinuousCritic:
        net = Net(
            state_shape=obs_shape, action_shape=action_shape, hidden_sizes=hidden, concat=True
        )
        return ContinuousCritic(preprocess_net=net).to(device)

    adam = AdamOptimizerFactory(lr=3e-4)
    algorithm = TD3BC(
        policy=policy(),
        policy_optim=adam,
        critic=critic(),
        critic_optim=adam,
        critic2=critic(),
        critic2_optim=adam,
    )
    buffer = ReplayBuffer.from_data(
        obs=data["obs"],
        act=data["action"],
        rew=data["reward"],
        terminated=data["terminated"],
        truncated=data["truncated"],
        done=data["terminated"] | data["truncated"],
        obs_next=data["next_obs"],
    )
    acting = policy().eval()

    def update() -> None:
        with policy_within_training_step(algorithm.policy):
            algorithm.update(buffer, batch_size)

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            if len(obs) == 1:
                return acting.compute_action(obs[0])[None]
            action = acting(Batch(obs=obs, info=Batch())).act.cpu().numpy()
            return acting.map_action(action)

    return {"update": update, "act": act, "sample": lambda: buffer.sample(batch_size)}


def of_d3rlpy(algorithm: str) -> MakePeer:
    """Returns the maker of an algorithm of d3rlpy, with d3rlpy's own defaults."""

    def make(data: Data, batch_size: int, device: str) -> Peer:
        # Its logger prints what it finds in the data, its old gym that it is old.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import d3rlpy

            table = d3rlpy.dataset.MDPDataset(
                data["obs"],
                data["action"],
                data["reward"],
                terminals=data["terminated"].astype(np.float32),
                timeouts=data["truncated"].astype(np.float32),
                action_space=d3rlpy.ActionSpace.CONTINUOUS,
            )
            settings = getattr(d3rlpy.algos, f"{algorithm}Config")(batch_size=batch_size)
            algo = settings.create(device="cpu:0" if device == "cpu" else "cuda:0")
            algo.build_with_dataset(table)

        def sample() -> Any:  # noqa: ANN401 - a type of d3rlpy's
            return table.sample_transition_batch(batch_size)

        return {"update": lambda: algo.update(sample()), "act": algo.predict, "sample": sample}

    return make


PEERS: dict[str, tuple[str, MakePeer]] = {  # name: (what must be installed, maker)
    "tianshou TD3+BC": ("tianshou", tianshou_td3_bc),
    "d3rlpy TD3+BC": ("d3rlpy", of_d3rlpy("TD3PlusBC")),
    "d3rlpy IQL": ("d3rlpy", of_d3rlpy("IQL")),
}


def named_peer(text: str) -> tuple[str, MakePeer]:
    """Returns name and maker of a contender given as ``NAME=PATH:MODULE:FUNCTION``.

    Raises:
        ValueError: If the text is not of this form.
    """
    name, equals, place = text.partition("=")
    parts = place.rsplit(":", 2)
    if not (name and equals) or len(parts) != 3 or not all(parts):
        raise ValueError(
            f"A peer is not understood: got {text!r}, expected NAME=PATH:MODULE:FUNCTION, e.g. "
            "mine=../my-repository:my_package.speed:make."
        )
    path, module, function = parts
    sys.path.insert(0, path)
    try:
        make: MakePeer = getattr(importlib.import_module(module), function)
    finally:
        sys.path.remove(path)
    return name, make


def peers(
    data: Data,
    batch_size: int,
    device: str,
    more: dict[str, MakePeer] | None = None,
    *,
    installed: bool = True,
) -> dict[str, Peer]:
    """Returns the peers that are installed, and more."""
    makers = {
        name: make
        for name, (needed, make) in PEERS.items()
        if installed and importlib.util.find_spec(needed) is not None
    }
    result = {}
    for name, make in (makers | (more or {})).items():
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result[name] = make(data, batch_size, device)
    return result
