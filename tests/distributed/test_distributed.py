"""Several processes compute the update that one would: parameters, metrics, errors."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gtp_policy import GTPLearner, MultiSeedLearner
from gtp_policy.errors import DistributedError, ShapeError
from tests.distributed import worker

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "how-to" / "distributed.md"
Found = dict[str, tuple[dict[str, torch.Tensor], dict[str, float]]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[int, list[Found]]:
    """What 1, 2 and 4 processes have learned, per number of them and rank."""
    found = {}
    for size in (1, 2, 4):
        processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(rank), str(size), str(folder)],
                env=dict(os.environ),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        errors = [process.communicate(timeout=300)[1] for process in processes]
        assert [p.returncode for p in processes] == [0] * size, errors
        found[size] = [torch.load(folder / f"{size}-{rank}.pt") for rank in range(size)]
    return found


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all parameters over their norm."""
    assert one.keys() == other.keys()
    difference = sum(float((one[k].double() - other[k].double()).square().sum()) for k in one)
    return (difference / sum(float(p.double().square().sum()) for p in one.values())) ** 0.5


@pytest.mark.parametrize("size", [2, 4])
def test_parameters_are_those_of_one_process(trained: dict[int, list[Found]], size: int) -> None:
    alone = trained[1][0]
    for name in (*(worker.configs() if size < 4 else worker.FEW), "reference"):
        for of_rank in trained[size]:
            assert apart(alone[name][0], of_rank[name][0]) < 1e-6, name
            assert of_rank[name][1] == pytest.approx(alone[name][1], rel=1e-4, abs=1e-6), name
        first, *others = (of_rank[name][0] for of_rank in trained[size])
        for other in others:  # to the bit, or they would drift apart
            assert all(torch.equal(first[k], other[k]) for k in first), name


def test_all_leave_fit_after_the_same_update(trained: dict[int, list[Found]], folder: Path) -> None:
    for rank in range(2):
        assert json.loads((folder / f"stopped-{rank}.json").read_text()) == [2, 4]


def test_statistics_of_each_process_alone_would_be_seen(trained: dict[int, list[Found]]) -> None:
    alone = trained[1][0]["default"][0]
    for size in (2, 4):
        assert apart(alone, trained[size][0]["own statistics"][0]) > 1e-3


@pytest.mark.parametrize("count", [1, 2])
def test_the_script_of_the_page_runs_by_the_commands_of_the_page(
    tmp_path: Path, count: int
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    script = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "train.py").write_text(
        script
        + "import os\n"
        + 'said = f"process {state.process_index} of {state.num_processes}\\n"\n'
        + "os.write(1, said.encode())\n"  # at once: both write to one place
    )
    command = ["python", "train.py"]
    if count > 1:
        command = ["torchrun", "--standalone", "--nproc-per-node", str(count), "train.py"]
    assert " ".join(command) in text
    words = [sys.executable, *(["-m", "torch.distributed.run"] if count > 1 else []), *command[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.count("5") == 1  # one of them prints
    for rank in range(count):
        assert f"process {rank} of {count}\n" in done.stdout


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_group_there_is_nothing_to_share() -> None:
    with pytest.raises(DistributedError, match="got no process group"):
        GTPLearner.build(3, 2).distribute_()


@pytest.mark.usefixtures("alone_in_a_group")
def test_what_cannot_be_shared_is_refused_before_anything_changes() -> None:
    learner = GTPLearner.build(3, 2)
    learner.distribute_()
    assert learner.processes is not None
    learner.processes.size = 3  # as if there were two others
    dataset = worker.data()
    with pytest.raises(ShapeError, match=r"got 64 rows, .* and 3 processes, expected multiples"):
        learner.update(dataset.sample(64, generator=learner.stream("batch")))
    assert (learner.updates, learner.broken) == (0, None)
    with pytest.raises(ValueError, match="side by side"):
        MultiSeedLearner([learner])


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_copy_is_not_shared() -> None:
    learner = GTPLearner.build(3, 2)
    learner.distribute_()
    for other in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):  # noqa: S301
        assert other.processes is None
        assert other.updates == 0
