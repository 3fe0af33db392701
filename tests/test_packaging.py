"""The release as a user gets it: sdist, the wheel built from it, and a bare environment."""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    here = {
        str(file.relative_to(ROOT))
        for folder in ("adapters", "docs", "examples", "gtp_policy", "tests")
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not {"_build", "__pycache__"} & set(file.parts)
    }
    top = {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"}
    assert here | top <= inside
    assert not [name for name in inside if "__pycache__" in name or name.startswith(".venv")]


def test_core_imports_alone(bare_python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as m, gtp_policy; "
        "print(gtp_policy.__version__, m.version('gtp-policy'), gtp_policy.__file__)"
    )
    version, installed, where = run(bare_python, "-c", code, cwd=tmp_path).split()
    assert version == installed
    assert not Path(where).is_relative_to(ROOT)


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
    assert f"gtp-policy[{extra}]" in run(bare_python, "-c", code, cwd=tmp_path)
