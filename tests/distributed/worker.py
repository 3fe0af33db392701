"""One of several processes that train the same learners: python worker.py RANK SIZE FOLDER."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gtp_experiments.processes import end
from gtp_policy import (
    AdvantageWeighterConfig,
    FlowMapActorConfig,
    GTPConfig,
    GTPLearner,
    GTPLearnerConfig,
    LinearQGuidance,
    OfflineDataset,
    QEnsembleConfig,
    StopSignal,
    algorithm,
    kernels,
    presets,
)

UPDATES, BATCH = 50, 64
# What four processes train: they take longer to start than to train.
FEW = ("default", "expectile", "linear Q")


def data() -> OfflineDataset:
    rng = np.random.default_rng(0)
    n = 400
    return OfflineDataset.from_arrays(
        obs=rng.normal(size=(n, 3)),
        action=rng.uniform(-1, 1, (n, 2)),
        reward=rng.normal(size=n),
        terminated=np.arange(n) % 40 == 39,
        truncated=np.zeros(n),
        low=[-1, -1],
        high=[1, 1],
    )


def small(config: GTPConfig, **learner: Any) -> GTPConfig:
    """The config with small networks, and a learning rate at which differences would show."""
    critic = config.critic and config.critic.replace(hidden=(32, 32))
    return config.replace(
        actor=config.actor.replace(hidden=(32, 32)),
        critic=critic,
        learner=config.learner.replace(total_updates=200, actor_lr=1e-3, **learner),
    )


def configs() -> dict[str, GTPConfig]:
    default = small(GTPConfig())
    return {
        "default": default,
        "cloning": small(GTPConfig(critic=None)),
        "paper": small(presets.paper_loss()),
        "expectile": small(GTPConfig(), baseline={"kind": "expectile"}, backup="value"),
        "linear Q": small(GTPConfig(learner=GTPLearnerConfig(guidance=LinearQGuidance(steps=1)))),
        "linear Q over its mean": small(
            GTPConfig(
                learner=GTPLearnerConfig(guidance=LinearQGuidance(steps=1, scale=1, normalize=True))
            )
        ),
        "the same through two steps": small(
            GTPConfig(
                learner=GTPLearnerConfig(guidance=LinearQGuidance(steps=2, scale=1, normalize=True))
            )
        ),
        "without layer norm": default.replace(
            critic=QEnsembleConfig(hidden=(32,), layer_norm=False)
        ),
        "share of the batch": default.replace(
            weighter=AdvantageWeighterConfig(effective_share=0.5)
        ),
        "chunks": small(GTPConfig(actor=FlowMapActorConfig(chunk=2, history=2))),
    }


def train(config: GTPConfig, size: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    actor, dataset = config.actor, data()
    dataset = dataset.with_history(actor.history or 1).with_chunks(actor.chunk or 1)
    learner = GTPLearner.from_dataset(dataset, config)
    if size > 1:
        learner.distribute_()
    metrics = learner.update_from(dataset, UPDATES, batch_size=BATCH)
    modules = {"actor": learner.actor, "critic": learner.critic, "target": learner.target_actor}
    return {
        f"{part}.{name}": p.detach().clone()
        for part, module in modules.items()
        if module is not None
        for name, p in module.named_parameters()
    }, metrics.to_floats()


def stop_early(rank: int) -> list[int]:
    """After how many updates `fit` ends, where one process alone wants it to: by callback, signal.

    The other one would wait for ever.
    """

    def wants(learner: GTPLearner, _: dict[str, float]) -> bool:
        return rank == 1 and learner.updates == 2

    def is_told(learner: GTPLearner, _: dict[str, float]) -> None:
        if rank == 0 and learner.updates == 4:
            signal.raise_signal(signal.SIGTERM)

    learner, found = GTPLearner.from_dataset(data(), configs()["cloning"]), []
    learner.distribute_()
    with StopSignal():
        for callback in (wants, is_told):
            learner.fit(data(), 5, batch_size=BATCH, progress=False, callback=callback, every=1)
            found.append(learner.updates)
    return found


def main() -> None:
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if size > 1:
        meet = f"file://{folder}/meet-{size}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    found = {}
    for name, config in configs().items():
        if size < 4 or name in FEW:
            found[name] = train(config, size)
    with kernels.using("reference"):
        found["reference"] = train(configs()["default"], size)
    whole = algorithm._weigh
    algorithm._weigh = lambda networks, advantage: networks.weigh(advantage)
    found["own statistics"] = train(configs()["default"], size)
    algorithm._weigh = whole
    torch.save(found, folder / f"{size}-{rank}.pt")
    if size == 2:
        (folder / f"stopped-{rank}.json").write_text(json.dumps(stop_early(rank)))
    end(0)


if __name__ == "__main__":
    main()
