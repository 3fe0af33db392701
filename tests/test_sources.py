"""What the sources never contain: code execution from data, global randomness, machine paths."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted([*(ROOT / "gtp_policy").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")])

EXECUTING_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"} | {
    "runpy",
    "subprocess",
    "yaml",  # none of our formats; its loader makes objects
}
EXECUTING_CALLS = {"__import__", "compile", "eval", "exec", "torch.load", "torch.jit.load"} | {
    "gymnasium.make",  # imports whatever an environment's specification names
    "os.popen",
    "os.system",
}
# os.execv, os.posix_spawn and their kin
EXECUTING_PREFIXES = ("os.exec", "os.posix_spawn", "os.spawn")

SEEDING_CALLS = {"torch.manual_seed", "torch.seed", "torch.set_rng_state", "torch.cuda.manual_seed"}
# These draw from a global generator unless given another.
TORCH_DRAWS = {"bernoulli", "multinomial", "normal", "poisson", "rand", "randint", "randn"} | {
    "randperm",
    "rand_like",
    "randint_like",
    "randn_like",
}
TENSOR_DRAWS = {
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "log_normal_",
    "multinomial",
    "normal_",
    "orthogonal_",
    "random_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
}
# Layers that draw in forward, and distributions, which accept no generator at all.
GLOBAL_BY_NATURE = {"torch.distributions", "torch.nn.Dropout", "torch.nn.functional.dropout"}
NUMPY_EXPLICIT = {"BitGenerator", "Generator", "PCG64", "SeedSequence", "default_rng"}


class Forbidden(ast.NodeVisitor):
    """Collects (line, what) of everything the library must not do."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.found: list[tuple[int, str]] = []

    def report(self, node: ast.AST, what: str) -> None:
        self.found.append((getattr(node, "lineno", 0), what))

    def dotted(self, node: ast.AST) -> str:
        """Returns the full dotted name of an expression, aliases resolved; "" if it has none."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            prefix = self.dotted(node.value)
            return f"{prefix}.{node.attr}" if prefix else ""
        return ""

    def imported(self, node: ast.AST, *names: str) -> None:
        bad = [n for n in names if n.split(".")[0] in EXECUTING_MODULES or n in GLOBAL_BY_NATURE]
        if bad:
            self.report(node, bad[0])

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.imported(node, alias.name)
            top = alias.name.partition(".")[0]
            self.aliases[alias.asname or top] = alias.name if alias.asname else top

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        full = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        self.imported(node, node.module or "", *full.values())
        self.aliases |= full

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self.dotted(node) in GLOBAL_BY_NATURE:
            self.report(node, self.dotted(node))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self.dotted(node.func)
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        keywords = {k.arg: k.value for k in node.keywords}
        explicit = "generator" in keywords
        if name in EXECUTING_CALLS | SEEDING_CALLS or name.startswith("torch.random."):
            self.report(node, name)
        elif name.startswith(EXECUTING_PREFIXES):
            self.report(node, name)
        elif name.startswith("torch.") and name.removeprefix("torch.") in TORCH_DRAWS:
            if not explicit:
                self.report(node, name)
        elif method in TENSOR_DRAWS and not explicit:
            self.report(node, method)
        elif name.startswith("numpy.random."):
            function = name.removeprefix("numpy.random.")
            if function not in NUMPY_EXPLICIT or (function == "default_rng" and not node.args):
                self.report(node, name)
        elif name.startswith("random.") and name != "random.Random":
            self.report(node, name)
        if "allow_pickle" in keywords and ast.unparse(keywords["allow_pickle"]) != "False":
            self.report(node, "allow_pickle")
        self.generic_visit(node)


def forbidden_in(source: str) -> list[tuple[int, str]]:
    visitor = Forbidden()
    visitor.visit(ast.parse(source))
    return visitor.found


# The one place that builds environments: those that the user's own command names.
BUILDS_ENVIRONMENTS = ROOT / "adapters" / "gtp_experiments" / "environments.py"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_library_executes_no_data_and_draws_from_no_global_generator(path: Path) -> None:
    assert forbidden_calls(path) == []


def forbidden_calls(path: Path) -> list[tuple[int, str]]:
    """Returns the forbidden calls of a source, but for the one that a user's command needs."""
    found = forbidden_in(path.read_text(encoding="utf-8"))
    return [call for call in found if path != BUILDS_ENVIRONMENTS or call[1] != "gymnasium.make"]


def test_environments_are_built_in_one_place() -> None:
    found = forbidden_in(BUILDS_ENVIRONMENTS.read_text(encoding="utf-8"))
    assert [what for _, what in found] == ["gymnasium.make"]


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from joblib import load",
        "import torch as th\nth.load('x')",
        "from torch import load\nload('x')",
        "eval('1')",
        "import subprocess",
        "from subprocess import run",
        "import yaml",
        "import os\nos.system('x')",
        "import os\nos.execv('x', [])",
        "from os import popen\npopen('x')",
        "import gymnasium as gym\ngym.make('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.randn(3)",
        "import torch\ntorch.randn_like(x)",
        "x.normal_()",
        "from torch import nn\nnn.init.xavier_uniform_(w)",
        "from torch import nn\nnn.Dropout(0.1)",
        "from torch.distributions import Normal",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nnp.random.default_rng()",
        "from numpy.random import rand\nrand(3)",
        "import random\nrandom.shuffle(x)",
    ],
)
def test_the_rule_finds_what_it_forbids(bad: str) -> None:
    assert len(forbidden_in(bad)) == 1


def test_the_rule_lets_explicit_generators_pass() -> None:
    good = """
import numpy as np, torch
from torch import nn
torch.randn(3, generator=g)
x.normal_(generator=g)
nn.init.uniform_(w, generator=g)
np.random.default_rng(0).normal(size=3)
model.eval()
torch.compile(f)
rng.random(3)
"""
    assert forbidden_in(good) == []


def project_files() -> Iterator[Path]:
    """Yields every text file of the project; of the source archive, where there is no git."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        hidden = re.compile(r"/\.(?!ci/)|/__pycache__/|/_build/")
        paths = [p for p in ROOT.rglob("*") if not hidden.search(f"/{p.relative_to(ROOT)}")]
    for path in paths:
        if path.is_file() and path.suffix not in {
            *(".gif", ".hdf5", ".npz", ".onnx", ".png", ".pt2", ".zip")
        }:
            yield path


def test_no_file_mentions_a_path_of_one_machine() -> None:
    machine = re.compile(r"(?<![\w.~])/(?:home|opt|root|tmp|Users|work)\b/?")
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line)
    ]
    assert hits == []


def test_what_builds_a_release_is_what_builds_in_development() -> None:
    """Each tool at the version of constraints.txt, and by the hash of its one file."""
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    named = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    lines = (ROOT / "constraints-build.txt").read_text(encoding="utf-8").splitlines()
    tools = [line for line in lines if line and not line.startswith("#")]
    assert {"build", "hatchling"} <= {line.partition("==")[0] for line in tools}
    for line in tools:
        found = re.fullmatch(r"([a-z-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert found is not None, line
        assert named[found[1]] == found[2]
