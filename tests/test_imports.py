"""Who may import whom: the arrows of the architecture, checked on the syntax tree."""

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gtp_policy
from gtp_policy import export

ROOT = Path(__file__).parents[1]
CORE = ROOT / "gtp_policy"

# The core in reading order. A module imports only from the rows above its own.
LAYERS: list[set[str]] = [
    {"_numbers", "errors", "progress", "records"},
    {
        "_config",
        "_contexts",
        "_fingerprint",
        "_random",
        "_stopping",
        "_version",
        "files",
        "progress",
    },
    {"times", "spaces", "rewards", "shards", "kernels", "keyed_noise"},
    {"functional"},
    {"chunks", "networks", "dataset_builder", "teachers", "samplers", "transitions"},
    {"_folding", "_prediction", "critic", "episodes", "frames", "metrics"},
    {"actor", "dataset", "encoders", "loss"},
    {"acting", "guidance"},
    {"config"},
    {"algorithm", "presets"},
    {"_engine"},
    {"_fitting"},
    {"learner"},
    {"multi_seed", "checkpoint"},
    {"export"},
    {"__init__"},
]
# Folders that stand in one row as a whole; inside, `test_no_circles` holds.
PACKAGES = {"kernels", "_engine", "checkpoint", "export"}
CORE_LIBRARIES = {"numpy", "pydantic", "safetensors", "torch"}
# What else a file of kernels may import: each is imported when first used, never required.
KERNEL_LIBRARIES = {"numba", "triton"}

# What a file of export may import: each when something is exported, never with the package.
EXPORT_LIBRARIES = {"huggingface_hub", "onnx", "onnxruntime"}

# Modules whose names are public in addition to those of `gtp_policy.__all__`.
PUBLIC_MODULES = (
    "gtp_policy.acting",
    "gtp_policy.chunks",
    "gtp_policy.critic",
    "gtp_policy.dataset_builder",
    "gtp_policy.encoders",
    "gtp_policy.episodes",
    "gtp_policy.errors",
    "gtp_policy.files",
    "gtp_policy.frames",
    "gtp_policy.functional",
    "gtp_policy.guidance",
    "gtp_policy.keyed_noise",
    "gtp_policy.loss",
    "gtp_policy.metrics",
    "gtp_policy.networks",
    "gtp_policy.presets",
    "gtp_policy.progress",
    "gtp_policy.records",
    "gtp_policy.rewards",
    "gtp_policy.samplers",
    "gtp_policy.shards",
    "gtp_policy.spaces",
    "gtp_policy.teachers",
    "gtp_policy.times",
)

# Folders outside the layers: what each may import, with the standard library and the core's
# public names. An adapter has exactly one host; gtp_datasets has one per file format.
OUTER: dict[str, set[str]] = {
    "gtp_policy/testing": CORE_LIBRARIES | {"hypothesis", "pytest"},
    "adapters/gtp_datasets": CORE_LIBRARIES
    | {"PIL", "av", "gymnasium", "h5py", "minari", "pyarrow"},
    "adapters/gtp_experiments": CORE_LIBRARIES
    | {
        "PIL",
        "accelerate",
        "av",
        "filelock",
        "gtp_datasets",
        "gymnasium",
        "matplotlib",
        "minari",
        "optuna",
    }
    | {"scipy", "submitit", "tqdm", "wandb"},
    "adapters/gtp_sb3": CORE_LIBRARIES
    | {"gtp_datasets", "gymnasium", "minari", "stable_baselines3", "tqdm"},
    "adapters/gtp_tianshou": CORE_LIBRARIES | {"gtp_datasets", "gymnasium", "minari", "tianshou"},
    "runtime/gtp_runtime": {"h11", "msgpack", "numpy", "onnxruntime", "starlette", "uvicorn"},
    "examples": CORE_LIBRARIES
    | {
        "gtp_datasets",
        "gtp_experiments",
        "gtp_runtime",
        "gtp_sb3",
        "gtp_tianshou",
        "gymnasium",
        "gymnasium_robotics",
    }
    | {"hypothesis", "matplotlib", "minari", "pytest", "stable_baselines3", "tianshou", "tqdm"},
}
# What `import gtp_policy` must not load: hosts, file formats and test tools.
FOREIGN = (
    KERNEL_LIBRARIES
    | EXPORT_LIBRARIES
    | {
        "av",
        "matplotlib",
        "pyarrow",
        "gtp_datasets",
        "gtp_experiments",
        "gtp_runtime",
        "gtp_sb3",
        "gtp_tianshou",
        "gymnasium",
        "h5py",
        "hypothesis",
        "minari",
        "pytest",
        "scipy",
        "stable_baselines3",
        "tianshou",
    }
)


def imports_of(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """Yields (module, name or None, line) of every import, wherever it stands in the file."""
    package = ".".join(path.relative_to(ROOT).parent.parts).removeprefix("adapters.")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                relative = importlib.util.resolve_name("." * node.level + module, package)
                module = relative.rstrip(".")
            yield from ((module, alias.name, node.lineno) for alias in node.names)


def core_module(module: str, name: str | None) -> str:
    """Returns the core's file that an import of gtp_policy reaches: `__init__` for the package."""
    parts = module.split(".")[1:]
    if parts:
        return parts[0]
    return name if name and (CORE / f"{name}.py").exists() else "__init__"


def outer_files() -> list[tuple[str, Path]]:
    return [(f, p) for f in OUTER for p in sorted((ROOT / f).rglob("*.py"))]


def defined_in(module: str) -> set[str]:
    """Returns a module's classes, functions and constants, and unions of configs by name."""
    names = vars(importlib.import_module(module))
    source = Path(str(names["__file__"])).read_text(encoding="utf-8")
    named = set(re.findall(r"^([A-Z]\w*) = Annotated", source, re.M))
    named |= set(re.findall(r"^([A-Z][A-Z_]+)\b[^=\n]* = ", source, re.M))
    return {
        n
        for n, value in names.items()
        if not n.startswith("_") and (n in named or getattr(value, "__module__", None) == module)
    }


def public_names() -> set[str]:
    """Returns the names of the core that others may import."""
    names = set(gtp_policy.__all__) | set(gtp_policy.kernels.__all__) | set(export.__all__)
    for module in PUBLIC_MODULES:
        names |= defined_in(module)
    return names


def test_every_core_module_has_a_layer() -> None:
    placed = set().union(*LAYERS)
    assert {p.stem for p in CORE.glob("*.py")} | PACKAGES == placed


def files_of(module: str) -> list[Path]:
    """Returns the file of a core module, or the files of a package."""
    folder = CORE / module
    return sorted(folder.glob("*.py")) if folder.is_dir() else [CORE / f"{module}.py"]


@pytest.mark.parametrize("module", sorted(set().union(*LAYERS)))
def test_arrows_never_reverse(module: str) -> None:
    row = next(i for i, layer in enumerate(LAYERS) if module in layer)
    allowed = set().union(*LAYERS[:row])
    libraries = CORE_LIBRARIES | sys.stdlib_module_names
    if module in PACKAGES:
        allowed = allowed | {module}
    if module == "kernels":
        libraries = libraries | KERNEL_LIBRARIES
    if module == "export":
        libraries = libraries | EXPORT_LIBRARIES
    if module == "progress":
        libraries = libraries | {"tqdm"}  # where it is installed, for the bar of a terminal
    for path in files_of(module):
        for imported, name, line in imports_of(path):
            where = f"{path.relative_to(ROOT)}:{line} imports {imported}"
            top = imported.partition(".")[0]
            if top == "gtp_policy":
                assert core_module(imported, name) in allowed, where
            else:
                assert top in libraries, where


@pytest.mark.parametrize(
    ("folder", "path"), outer_files(), ids=[str(p.relative_to(ROOT)) for _, p in outer_files()]
)
def test_outer_code_uses_public_names_and_its_own_host(folder: str, path: Path) -> None:
    own = folder.removeprefix("adapters/").removeprefix("runtime/").replace("/", ".")
    public = public_names()
    for imported, name, line in imports_of(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {imported} {name or ''}"
        top = imported.partition(".")[0]
        if imported == own or imported.startswith(f"{own}."):
            continue
        if top != "gtp_policy":
            assert top in OUTER[folder] | sys.stdlib_module_names, where
        elif imported.startswith("gtp_policy.testing"):
            assert folder == "examples", where
        else:
            assert "._" not in imported, where
            assert name in public or f"{imported}.{name}" in PUBLIC_MODULES, where


def module_graph(folder: Path) -> dict[str, set[str]]:
    """Returns which modules of a folder import which, wherever in a file the import stands."""
    files = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        reached = {
            f"{imported}.{name}" if f"{imported}.{name}" in files else imported
            for imported, name, _ in imports_of(path)
        }
        graph[module] = reached & files.keys() - {module}
    return graph


def circle_in(graph: dict[str, set[str]]) -> str:
    """Returns a circle of a graph as a sentence, or "" if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return " imports ".join(reversed(error.args[1]))
    return ""


INSTALLED = tuple(f for f in OUTER if f.startswith(("adapters/", "runtime/")))
ROOTS = ("gtp_policy", *INSTALLED, "benchmarks", "examples")


@pytest.mark.parametrize("root", ROOTS)
def test_no_circles(root: str) -> None:
    graph = module_graph(ROOT / root)
    assert len(graph) > 1
    assert circle_in(graph) == ""


def test_a_circle_is_found_wherever_the_import_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    folder = tmp_path / "adapters" / "host"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from host.a import f\n")
    (folder / "a.py").write_text("def f():\n    from host import b\n")
    (folder / "b.py").write_text("if TYPE_CHECKING:\n    from host.a import f\n")
    assert "host.a imports host.b" in circle_in(module_graph(folder))
    (folder / "b.py").write_text("import host.a\n")
    assert "host.b imports host.a" in circle_in(module_graph(folder))
    (folder / "b.py").write_text("")
    assert circle_in(module_graph(folder)) == ""


# --- private names stay with their owner

# Public in spite of their underscore: named tuples keep it free for the names of fields.
OF_NAMED_TUPLES = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}
# What a host or the language leaves no other way to do.
FORCED = {
    ("gtp_experiments/processes.py", "os._exit"): "ends a process in spite of a library's threads",
    ("gtp_experiments/runner.py", "os._exit"): "ends a process in spite of its threads",
    ("gtp_sb3/gtp.py", "target._orig_mod"): "where torch.compile keeps the module",
    ("gtp_sb3/policies.py", "state._metadata"): "where a state of torch says more than numbers",
    ("gtp_tianshou/buffers.py", "buffer._size"): "a batch that is set counts as no transition",
    (
        "gtp_tianshou/highlevel.py",
        "ParamsMixinActorAndCritic._get_param_transformers",
    ): "how parameters of Tianshou put mixins together; super() is another base class",
}


class Reaches(ast.NodeVisitor):
    """Collects the private names that a file takes from something that is not its own.

    Own are `self`, `cls`, `super()`, classes of the file, and what a method has just made of these:
    `x = cls(...)`, `x = copy.copy(self)`.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.own = {"self", "cls"} | {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
        self.found: list[str] = []
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = self.own
        self.own = before | {
            target.id
            for part in ast.walk(node)
            if isinstance(part, ast.Assign) and self.makes_one(part.value)
            for target in part.targets
            if isinstance(target, ast.Name)
        }
        self.generic_visit(node)
        self.own = before

    def makes_one(self, value: ast.expr) -> bool:
        text = ast.unparse(value)
        return text.startswith("cls(") or text in ("copy.copy(self)", "copy.deepcopy(self)")

    def reach(self, owner: ast.expr, name: str) -> None:
        private = name.startswith("_") and not name.startswith("__")
        own = ast.unparse(owner) in self.own | {"super()"}
        if private and not own and name not in OF_NAMED_TUPLES:
            self.found.append(f"{ast.unparse(owner)}.{name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.reach(node.value, node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func) in {"delattr", "getattr", "hasattr", "setattr"}:
            owner, name = node.args[:2]
            if isinstance(name, ast.Constant):
                self.reach(owner, str(name.value))
        self.generic_visit(node)


def private_names_of_others(path: Path) -> list[str]:
    """Returns the private names that a file takes from objects, or imports from modules."""
    found = Reaches(ast.parse(path.read_text(encoding="utf-8"))).found
    for module, name, _ in imports_of(path):
        private = name is not None and name.startswith("_") and not name.startswith("__")
        if private and not (ROOT / "adapters" / module.replace(".", "/") / f"{name}.py").exists():
            found.append(f"{module}.{name}")
    return found


@pytest.mark.slow
def test_outer_packages_leave_the_private_names_of_others_alone() -> None:
    found = {
        (path.relative_to((ROOT / folder).parent).as_posix(), name)
        for folder in INSTALLED
        for path in (ROOT / folder).rglob("*.py")
        for name in private_names_of_others(path)
    }
    assert found - FORCED.keys() == set()
    assert FORCED.keys() - found == set()  # no longer needed


# What torch says nowhere else: hooks, entries, facts, versions of tensors, wrapped steps.
OF_TORCH = {
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_current_level",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_metadata",
    "_modules",
    "_opt_called",
    "_optimizer_step_post_hooks",
    "_optimizer_step_pre_hooks",
    "_parameters",
    "_post_accumulate_grad_hooks",
    "_version",
    "_wrapped_by_lr_sched",
}


def test_the_core_takes_private_names_of_torch_and_of_the_same_file_alone() -> None:
    found, used = set(), set()
    for path in CORE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for reached in Reaches(ast.parse(text)).found:
            name = reached.rpartition(".")[2]
            used.add(name)
            of_this_file = re.search(rf"self\.{name}\b|def {name}\b", text)
            if not (reached.startswith("torch.") or name in OF_TORCH or of_this_file):
                found.add((path.relative_to(CORE).as_posix(), reached))
    assert found == set()
    assert OF_TORCH - used == set()  # no longer needed


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("model._x = 1", ["model._x"]),
        ("self.model._x", ["self.model._x"]),
        ("getattr(model, '_x')", ["model._x"]),
        ("from torch.nn import _x", ["torch.nn._x"]),
        ("def f(self):\n    model = make(self)\n    model._x", ["model._x"]),
        ("def f(cls):\n    model = cls(3)\n    return model._x", []),
        ("def f(self):\n    self._x, super()._y, self.__dict__, row._replace(a=1)", []),
        ("class A:\n    _x = 1\nA._x", []),
    ],
)
def test_what_counts_as_the_private_name_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, found: list[str]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "a.py"
    path.write_text(line)
    assert private_names_of_others(path) == found


def test_the_rule_sees_hidden_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "gtp_policy").mkdir()
    path = tmp_path / "gtp_policy" / "times.py"
    path.write_text("def f():\n    import minari.utils\n    from .loss import GTPLoss\n")
    assert list(imports_of(path)) == [
        ("minari.utils", None, 2),
        ("gtp_policy.loss", "GTPLoss", 3),
    ]


@pytest.mark.slow
def test_importing_the_core_loads_no_host_and_no_test_tool() -> None:
    code = "import sys, gtp_policy; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(result.stdout.split())
    assert "gtp_policy" in loaded
    assert not loaded & FOREIGN


def test_public_names_exist_and_are_no_modules() -> None:
    for name in gtp_policy.__all__:
        assert not inspect.ismodule(getattr(gtp_policy, name)), name


def test_names_that_moved_still_work_and_say_where_they_are() -> None:
    for name, module in gtp_policy._MOVED.items():
        assert name not in gtp_policy.__all__
        with pytest.warns(DeprecationWarning, match=f"from gtp_policy.{module} import {name}"):
            found = getattr(gtp_policy, name)
        assert found is getattr(importlib.import_module(f"gtp_policy.{module}"), name)
    with pytest.raises(AttributeError, match="no attribute 'KarasTimes'"):
        gtp_policy.KarasTimes  # noqa: B018 - a misspelling


def test_the_face_is_small() -> None:
    assert len(gtp_policy.__all__) <= 37


def test_what_is_changed_where_is_there() -> None:
    """The table in CONTRIBUTING.md: each name stands in the file that is named before it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]+\| (`.+) \|$", text.split("### Where to change what")[1], re.M)
    assert len(rows) > 5
    for row in rows:
        source = ""
        for word in re.findall(r"`([^`]+)`", row):
            if "/" in word:
                assert (ROOT / word).exists(), word
                source = (ROOT / word).read_text(encoding="utf-8") if "." in word else ""
            else:
                name = word.rpartition(".")[2]
                assert re.search(rf"^ *(def |class )?{name}\b", source, re.M), word


def test_the_page_on_the_architecture_is_made_from_the_sources() -> None:
    specification = importlib.util.spec_from_file_location(
        "architecture", ROOT / "docs" / "architecture.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    text = module.PAGE.read_text(encoding="utf-8")
    assert text == module.page(text, LAYERS), "run `make tables`"
