"""The tasks of the comparison with other methods: their data, where they are tried, who made them.

    python -m benchmarks.tasks [--data outputs/data]    # a list, with what is missing

Settings are chosen on the tasks that decide, and frozen before the others are run. A task's words
are those of `gtp_experiments` and `benchmarks.peers`; `make pointmaze-data`, `ogbench-data`,
`metaworld-data`, `pendulum-data` and `mixed-data` make the data that are not there.
"""

import argparse
import dataclasses
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

DATA = Path("outputs/data")
LIKE_D4RL = "generated locally in the manner of D4RL, not files of D4RL"


@dataclasses.dataclass(frozen=True)
class Task:
    """One task, and everything but the method that a run on it needs.

    Attributes:
        name: What scores go by, and what tables call it.
        dataset: Id of a Minari dataset, or a file below the folder of data.
        environment: Where policies are tried; None: the dataset's own.
        note: Where the data come from.
        decides: Whether settings are chosen on it.
        packages: Folder that must come first on the path; None: none.
        minari: Folder of its Minari dataset; None: where ``MINARI_DATASETS_PATH`` says.
    """

    name: str
    dataset: str
    note: str
    environment: str | None = None
    decides: bool = False
    packages: str | None = None
    minari: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the data are a file of ours."""
        return self.dataset.endswith((".hdf5", ".npz"))

    def words(self, data: Path = DATA, episodes: int = 100) -> str:
        """Returns the task's part of a command line."""
        dataset = str(data / self.dataset) if self.is_file else self.dataset
        words = ["--dataset", dataset, "--task", self.name, "--episodes", str(episodes)]
        if self.environment is not None:
            words += ["--environment", self.environment]
        return shlex.join([*words, "--data-note", self.note])


def _ogbench(name: str) -> Task:
    return Task(
        name,
        f"{name}-play-singletask-task2-v0.npz",
        "plans of OGBench's oracle, 100,000 transitions of our own (benchmarks.ogbench_data)",
        environment=f"ogbench:{name}-singletask-task2-v0",
        packages="outputs/ogbench",
    )


def _metaworld(task: str) -> Task:
    return Task(
        f"metaworld-{task}",
        f"metaworld-{task}.hdf5",
        "Meta-World's scripted policy with noise and failures (benchmarks.metaworld_data)",
        environment=f"benchmarks.metaworld_data:{task.replace('-', '_')}",
        packages="outputs/metaworld",
    )


def _mixed(name: str, environment: str) -> Task:
    return Task(
        f"{name}-mixed",
        f"{name}-mixed.hdf5",
        "five agents of very different quality, trained here (benchmarks.mixed_data)",
        environment=environment,
    )


TASKS = (
    Task(
        "hopper-medium",
        "mujoco-local/hopper/medium-v0",
        LIKE_D4RL,
        decides=True,
    ),
    Task(
        "antmaze-umaze",
        "D4RL-local/antmaze/umaze-v2",
        LIKE_D4RL,
        environment="antmaze_d4rl:AntMazeD4RL-umaze-v2",
        decides=True,
    ),
    Task(
        "antmaze-medium-play",
        "D4RL-local/antmaze/medium-play-v2",
        LIKE_D4RL,
        environment="antmaze_d4rl:AntMazeD4RL-medium-v2",
        decides=True,
    ),
    Task(
        "pointmaze-umaze",
        "gtp-policy/pointmaze-umaze-100000-v0",
        "the project's own waypoint controller (examples.pointmaze)",
        environment="examples.pointmaze:make_env",
        decides=True,
        minari="outputs/minari",
    ),
    *(_ogbench(name) for name in ("cube-single", "cube-double", "scene")),
    *(_metaworld(task) for task in ("pick-place", "door-open")),
    Task(
        "pendulum-mediocre",
        "pendulum-mediocre.hdf5",
        "a mediocre controller (benchmarks.pendulum_data)",
        environment="benchmarks.pendulum_data:make_env",
    ),
    _mixed("hopper", "Hopper-v5"),
    _mixed("halfcheetah", "HalfCheetah-v5"),
)
# For cloning alone: not among the tasks that methods are compared on.
DEMONSTRATIONS = Task(
    "cube-single",
    "cube-single-task2-demonstrations.hdf5",
    "500 demonstrations by OGBench's oracle with noise (benchmarks.ogbench_data)",
    environment="ogbench:cube-single-singletask-task2-v0",
    packages="outputs/ogbench",
)


def surroundings(task: Task, given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a run: what was given, and what its task needs."""
    needed = {}
    if task.packages is not None:
        path = [task.packages, given.get("PYTHONPATH", "")]
        needed["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    if task.minari is not None:
        needed["MINARI_DATASETS_PATH"] = task.minari
    return {**given, **needed}


def main() -> None:
    """Lists the tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    for task in TASKS:
        here = not task.is_file or (args.data / task.dataset).exists()
        mark = "D" if task.decides else " "
        print(f"{mark} {task.name}{'' if here else '  (no data yet)'}\n    {task.words(args.data)}")


if __name__ == "__main__":
    main()
