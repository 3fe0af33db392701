"""What a result was made with, apart from its config: software, revision, machine."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gtp_policy import __version__

PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "minari")


def provenance(*packages: str) -> dict[str, str]:
    """Describes the software and the machine that a result comes from.

    Args:
        *packages: Names of distributions besides the usual ones, e.g. a peer's.

    Returns:
        Versions of Python and of the packages that are installed, the git revision of the checkout
        if there is one, system and processor.

    Example:
        >>> from gtp_experiments import provenance
        >>> {"python", "torch", "gtp_policy", "machine"} <= provenance().keys()
        True
    """
    found = {"python": platform.python_version(), "gtp_policy": __version__}
    for name in (*PACKAGES, *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if (revision := _git_revision(Path(__file__).resolve().parents[2])) is not None:
        found["git"] = revision
    return found | {"system": f"{platform.system()} {platform.machine()}", "machine": _processor()}


def _git_revision(root: Path) -> str | None:
    """Reads the commit that is checked out, without running git."""
    try:
        git = root / ".git"
        if git.is_file():  # a linked worktree
            git = root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        if common.exists():
            git = git / common.read_text(encoding="utf-8").strip()
        if (git / name).exists():
            return (git / name).read_text(encoding="utf-8").strip()
        packed = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {name}"))
    except (OSError, StopIteration):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
