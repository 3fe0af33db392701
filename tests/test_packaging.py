"""The release as a user gets it: sdist, the wheel built from it, and a bare environment.

And what builds and tests it: the workflows name commands and files that there are.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# One process builds for all of these tests.
pytestmark = [pytest.mark.xdist_group("packaging"), pytest.mark.timeout(900)]


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "COV_CORE_SOURCE"}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built with the development environment's hatchling."""
    folder = tmp_path_factory.mktemp("release")
    # Without --wheel or --sdist, `build` makes the wheel from the sdist it has just made.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(release: Path) -> Path:
    (path,) = release.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment with the wheel and its hard dependencies, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    yield python
    shutil.rmtree(folder)  # close to a gigabyte, which pytest would keep for three runs


def test_wheel_holds_the_packages_and_their_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata_path,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(archive.read(metadata_path).decode())
    top = {name.partition("/")[0] for name in names}
    packages = {"gtp_policy", "gtp_datasets", "gtp_experiments", "gtp_sb3", "gtp_tianshou"}
    assert {t for t in top if not t.endswith(".dist-info")} == packages
    assert {f"{package}/py.typed" for package in packages} <= set(names)
    assert wheel.stat().st_size < 1_000_000
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    hard = [d for d in metadata.get_all("Requires-Dist", []) if "extra ==" not in d]
    assert sorted(d.partition("<")[0].partition(">")[0] for d in hard) == [
        "numpy",
        "pydantic",
        "safetensors",
        "torch",
    ]


def test_sdist_is_enough_to_test_and_document_the_release(release: Path) -> None:
    (path,) = release.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    made = ROOT / "docs" / "pictures" / "gallery"  # by Sphinx, from the scripts of docs/gallery
    here = {
        str(file.relative_to(ROOT))
        for folder in ("adapters", "docs", "examples", "gtp_policy", "models", "runtime", "tests")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not {"_build", "__pycache__"} & set(file.parts)
        if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)  # caches
        if not file.is_relative_to(made)
    }
    assert here | {"pyproject.toml"} <= inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith(".venv")]


def test_sdist_holds_every_file_that_is_committed(release: Path) -> None:
    git = ["git", "ls-files", "-z"]
    listing = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("this is no git checkout")
    (path,) = release.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    committed = {name for name in listing.stdout.split("\0") if name and (ROOT / name).exists()}
    assert committed <= inside


@pytest.mark.packaging
def test_core_imports_alone(bare_python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as m, gtp_policy; "
        "print(gtp_policy.__version__, m.version('gtp-policy'), gtp_policy.__file__)"
    )
    version, installed, where = run(bare_python, "-c", code, cwd=tmp_path).split()
    assert version == installed
    assert not Path(where).is_relative_to(ROOT)


@pytest.mark.packaging
def test_core_trains_alone(bare_python: Path, tmp_path: Path) -> None:
    code = """
import torch, gtp_policy as gtp
g = torch.Generator().manual_seed(0)
actor, target = gtp.FlowMapActor(3, 2), gtp.FlowMapActor(3, 2)
obs, action = torch.randn(8, 3, generator=g), torch.rand(8, 2, generator=g) * 2 - 1
gtp.GTPLoss()(actor, target, obs, action, generator=g).loss.backward()
print(tuple(actor.sample(obs, generator=g).shape))
"""
    assert run(bare_python, "-c", code, cwd=tmp_path).strip() == "(8, 2)"


@pytest.mark.packaging
@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("gtp_policy.testing", "testing"),
        ("gtp_datasets", "datasets"),
        ("gtp_experiments", "experiments"),
        ("gtp_sb3", "sb3"),
        ("gtp_tianshou", "tianshou"),
    ],
)
def test_a_missing_extra_is_named(
    bare_python: Path, tmp_path: Path, package: str, extra: str
) -> None:
    code = f"""
from gtp_policy.errors import MissingDependencyError
try:
    import {package}
    if {package!r} == "gtp_datasets":  # hosts are imported on first use
        {package}.load_minari("some/dataset-v0")
except MissingDependencyError as error:
    print(error)
"""
    assert f"pip install '.[{extra}]'" in run(bare_python, "-c", code, cwd=tmp_path)


BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M
)
# What each extra is for, as a user would try it first: of the README where it has a block.
FIRST_HOURS = {
    "": [block for block in BLOCKS if "gtp_experiments" not in block and "gym" not in block],
    "experiments": [block for block in BLOCKS if "gtp_experiments" in block],
    "sb3": [block for block in BLOCKS if "gtp_sb3" in block],
    "tianshou": [block for block in BLOCKS if "gtp_tianshou" in block],
    "export": [
        "from gtp_policy import GTPLearner\n"
        "from gtp_policy.export import export_onnx\n"
        "print(export_onnx(GTPLearner.build(3, 2), 'policy.onnx'))\n"
    ],
    "testing": [
        "from gtp_policy import FlowMapActor\n"
        "from gtp_policy.testing import check_flow_map\n"
        "print(check_flow_map(FlowMapActor(3, 2), obs_dim=3, action_dim=2))\n"
    ],
    "datasets": [
        "import h5py, numpy as np\n"
        "from gtp_datasets import load_d4rl_hdf5, report\n"
        "rows = {'observations': np.zeros((4, 3)), 'actions': np.zeros((4, 2))}\n"
        "rows |= {'rewards': np.arange(4.0), 'next_observations': np.zeros((4, 3))}\n"
        "rows |= {'terminals': np.arange(4) == 3, 'timeouts': np.zeros(4, bool)}\n"
        "with h5py.File('a.hdf5', 'w') as file:\n"
        "    for name, column in rows.items():\n"
        "        file[name] = column\n"
        "print(report(load_d4rl_hdf5('a.hdf5')))\n"
    ],
    "plots": [
        "from gtp_experiments import mountain_car_logs, plot_actions\n"
        "from gtp_policy import GTPConfig, GTPLearner\n"
        "logs = mountain_car_logs(2)\n"
        "learner = GTPLearner.from_dataset(logs, GTPConfig(critic=None))\n"
        "plot_actions(learner, logs).savefig('actions.png')\n"
    ],
    "hub": [
        "from gtp_policy import GTPLearner\n"
        "from gtp_policy.export import from_pretrained, save_pretrained\n"
        "GTPLearner.build(3, 2).save('policy.zip')\n"
        "save_pretrained('policy.zip', 'folder')\n"
        "print(from_pretrained('folder'))\n"
    ],
    "csv": [
        "from gtp_datasets import load_csv\n"
        "open('a.csv', 'w').write('obs,action\\n0,0\\n1,0\\n2,1\\n')\n"
        "print(load_csv('a.csv', low=-1.0, high=1.0, episode=False))\n"
    ],
    "fast": [
        "import numba, numpy\n"
        "from gtp_policy import FlowMapActor\n"
        "print(FlowMapActor(3, 2).explain(rows=1))\n"
    ],
}
# Those on top of the experiments: the quickstart, with what they bring.
QUICKSTART = FIRST_HOURS["experiments"]
FIRST_HOURS |= {
    extra: [*QUICKSTART, f"import {module}\n"]
    for extra, module in {
        "distributed": "accelerate",
        "lerobot": "av, pyarrow.parquet, gtp_datasets",
        "slurm": "submitit, optuna",
        "sweep": "optuna, matplotlib",
        "tensorboard": "torch.utils.tensorboard",
        "wandb": "wandb",
    }.items()
}
FIRST_HOURS["lerobot"] = FIRST_HOURS["lerobot"][1:]  # which is for data alone


@pytest.mark.packaging
@pytest.mark.parametrize("extra", FIRST_HOURS)
def test_the_first_hour_works_from_the_wheel(
    bare_python: Path, wheel: Path, tmp_path: Path, extra: str
) -> None:
    """In an environment with the hard dependencies and one extra, outside the checkout."""
    assert FIRST_HOURS[extra]
    python = bare_python
    if extra:
        # What the bare environment has is seen from here, so that torch is installed once.
        run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
        python = tmp_path / "venv" / "bin" / "python"
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own, bare = (run(p, "-c", where, cwd=tmp_path).strip() for p in (python, bare_python))
        Path(own, "bare.pth").write_text(f"{bare}\n", encoding="utf-8")
        constraints = ["-c", ROOT / "constraints.txt"]
        install = [python, "-m", "pip", "install", "-q", *constraints, f"{wheel}[{extra}]"]
        run(*install, cwd=tmp_path)
    for number, block in enumerate(FIRST_HOURS[extra]):
        folder = tmp_path / str(number)
        folder.mkdir()
        run(python, "-c", block, cwd=folder)
    origin = run(python, "-c", "import gtp_policy; print(gtp_policy.__file__)", cwd=tmp_path)
    assert not Path(origin.strip()).is_relative_to(ROOT)


def test_every_archive_is_one_that_an_index_takes(release: Path, runtime_wheel: Path) -> None:
    archives = [*release.iterdir(), *runtime_wheel.parent.iterdir()]
    assert len(archives) == 4
    check = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives]
    assert run(*check, cwd=release).count("PASSED") == 4


def test_version_and_date_of_the_release_are_the_same_everywhere(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    heading = re.search(
        r"^## \[(\d[^]]*)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M
    )
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert heading
    assert (heading[1], heading[2]) == (citation["version"], str(citation["date-released"]))
    # Between releases the package is ahead of both.
    assert version == heading[1] or ".dev" in version


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of gtp-policy-runtime, built from its own sdist."""
    folder = tmp_path_factory.mktemp("runtime")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    run(*build, ROOT / "runtime", cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_runtimes_wheel_holds_its_package_alone(runtime_wheel: Path) -> None:
    with zipfile.ZipFile(runtime_wheel) as archive:
        names = archive.namelist()
        (metadata_path,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_string(archive.read(metadata_path).decode())
    top = {name.partition("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"gtp_runtime"}
    assert {"gtp_runtime/py.typed", "gtp_runtime/example.onnx"} <= set(names)
    assert runtime_wheel.stat().st_size < 100_000
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    hard = [d for d in metadata.get_all("Requires-Dist", []) if "extra ==" not in d]
    assert sorted(d.partition("<")[0].partition(">")[0] for d in hard) == ["numpy", "onnxruntime"]


def test_the_runtime_is_of_the_same_release() -> None:
    ours, other = (
        (ROOT / path / "_version.py").read_text("utf-8").partition("__version__ = ")[2]
        for path in ("gtp_policy", "runtime/gtp_runtime")
    )
    assert ours == other
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "runtime" / "LICENSE").read_bytes()


def test_the_development_environment_has_what_the_runtime_needs() -> None:
    ours, other = (
        tomllib.loads((ROOT / path).read_text(encoding="utf-8"))["project"]
        for path in ("pyproject.toml", "runtime/pyproject.toml")
    )
    declared = {*ours["dependencies"], *ours["optional-dependencies"]["dev"]}
    needed = {*other["dependencies"], *other["optional-dependencies"]["serve"]}
    assert needed <= declared


@pytest.mark.packaging
def test_the_runtime_acts_where_there_is_no_torch(runtime_wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
    run(*install, f"{runtime_wheel}[serve]", cwd=tmp_path)
    code = """
import sys
import numpy as np
from gtp_runtime import Policy, example_file
for backend in ("onnxruntime", "numpy"):
    policy = Policy.load(example_file(), backend=backend)
    print(policy.backend, policy.act(np.zeros(3), deterministic=True).shape)
print("torch" in sys.modules, example_file())
"""
    lines = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert lines[:2] == ["onnxruntime (1,)", "numpy (1,)"]
    assert lines[2].startswith("False ")
    assert not Path(lines[2].removeprefix("False ")).is_relative_to(ROOT)
    run(python, "-c", "import gtp_runtime.serving.server", cwd=tmp_path)
    with pytest.raises(AssertionError, match="No module named 'torch'"):
        run(python, "-c", "import torch", cwd=tmp_path)


def commands(workflow: Path) -> list[str]:
    """Returns what a workflow's steps run, one command each."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    scripts = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    return [line for script in scripts for line in script.splitlines() if line]


def missing(command: str) -> list[str]:
    """Returns the make targets, modules and files that a command names and that there are not."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    made = (".venv/", "dist/", "/dev/")  # by an earlier step, or by the system
    words = command.replace("=", " ").split()
    gone = []
    for before, word in zip(["", *words], words, strict=False):
        if before == "make":
            gone += [word] * (word not in targets)
        elif before == "-m" and word.startswith("benchmarks."):
            gone += [word] * (not (ROOT / f"{word.replace('.', '/')}.py").exists())
        elif re.search(r"/|\.(?:py|toml|txt)$", word) and not word.startswith(made):
            gone += [word] * (not (ROOT / word).exists())
    return gone


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_there_is(workflow: Path) -> None:
    assert {c: missing(c) for c in commands(workflow) if missing(c)} == {}


def test_what_is_missing_is_seen() -> None:
    assert missing("make no-such-target") == ["no-such-target"]
    assert missing("python -m benchmarks.nothing --ignore=tests/nothing.py gtp_policy") == [
        "benchmarks.nothing",
        "tests/nothing.py",
    ]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_limited_and_its_actions_are_pinned(workflow: Path) -> None:
    text = workflow.read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    assert content["permissions"] == {"contents": "read"}
    assert "cancel-in-progress" in content["concurrency"]
    for job in content["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            if "cache" in step.get("with", {}):
                cached = step["with"]["cache-dependency-path"].split()
                assert [path for path in cached if not (ROOT / path).is_file()] == []
    uses = re.findall(r"uses: (.*)", text)
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_the_matrix_tests_every_python_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: 3."
    declared = [c.rpartition(" ")[2] for c in project["classifiers"] if c.startswith(prefix)]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["versions"]["strategy"]["matrix"]["python"] == declared


def test_pre_commit_runs_what_make_lint_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = {
        hook["id"]: hook["entry"].removeprefix(".venv/bin/python -m ")
        for repository in config["repos"]
        for hook in repository["hooks"]
        if "entry" in hook
    }
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    lint = recipe[1].replace("\t$(BIN)/python -m ", "").splitlines()
    assert [hooks["mypy-core"], hooks["mypy-adapters"]] == [c for c in lint if c[:4] == "mypy"]
    assert [c.split()[:2] for c in lint if c.startswith("ruff")] == [
        hooks["ruff-check"].split()[:2],
        hooks["ruff-format"].split()[:2],
    ]


def test_make_test_lowest_names_tests_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^test-lowest:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe
    named = re.findall(r"\btests/[\w/.]+", recipe[1])
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
