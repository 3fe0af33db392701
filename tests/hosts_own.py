"""Runs the hosts' own tests of an algorithm, with GTP in its place.

    python -m tests.hosts_own --sb3 PATH --contrib PATH --tianshou PATH
    python -m tests.hosts_own --sb3 PATH --only "SB3 TD3 online"     some of the suites
    python -m tests.hosts_own --sb3 PATH --stock                     the host's own algorithm
    python -m tests.hosts_own --sb3 PATH -x                          what follows is pytest's

A path is a checkout of the host, or its source archive unpacked, of the version that is installed:
only its tests are read, a copy of them runs. Nothing is fetched. `tests.hosts_own_plugin` says
which tests concern an algorithm, which are excluded and why.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.hosts_own_plugin import VARIABLE, Place

ROOT = Path(__file__).parents[1]

# By option: folder of the tests in the checkout, the package that has to be installed, and a test
# file by which the folder is known.
HOSTS = {
    "sb3": ("tests", "stable_baselines3", "test_save_load.py"),
    "contrib": ("tests", "sb3_contrib", "test_save_load.py"),
    "tianshou": ("test", "tianshou", "offline/test_cql.py"),
}
_OFFLINE = ("offline/test_bcq.py", "offline/test_cql.py", "offline/test_td3_bc.py")
# Option, place, and files; of Stable-Baselines3 all files that name the algorithm.
SUITES: dict[str, tuple[str, Place, tuple[str, ...]]] = {
    **{
        f"SB3 {name} {way}": ("sb3", Place("stable_baselines3", (name,), way), ())
        for way in ("online", "offline")
        for name in ("TD3", "SAC", "DDPG")
    },
    **{
        f"contrib TQC {way}": ("contrib", Place("sb3_contrib", ("TQC",), way), ())
        for way in ("online", "offline")
    },
    **{
        f"Tianshou {way}": (
            "tianshou",
            Place("tianshou.algorithm", ("BCQ", "CQL", "TD3BC"), way),
            _OFFLINE,
        )
        for way in ("from_buffer", "constructor")
    },
}


class Result(NamedTuple):
    """What became of the tests of a suite.

    Excluded are tests by name, with the reason; notes say what was changed in the calls, by how
    many of the tests that passed.
    """

    passed: int
    excluded: dict[str, str]
    failed: tuple[str, ...]
    skipped: int
    notes: Counter[tuple[str, str]]
    seconds: float


def run(name: str, checkout: Path, options: list[str], *, stock: bool = False) -> Result:
    """Runs a suite in a separate process, on a copy of the host's tests."""
    host, place, files = SUITES[name]
    if stock:
        place = place._replace(way="stock")
    folder, _, _ = HOSTS[host]
    with tempfile.TemporaryDirectory() as directory:
        # Tests write logs where they are, and would import the host from their checkout.
        copy, report = Path(directory, folder), Path(directory, "report.xml")
        shutil.copytree(checkout / folder, copy)
        chosen = [copy / file for file in files] or [
            path
            for path in sorted(copy.glob("test_*.py"))
            if place.algorithms[0] in path.read_text(encoding="utf-8")
        ]
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-p", "tests.hosts_own_plugin", f"--rootdir={copy}", f"--junitxml={report}"]
        paths = [ROOT, ROOT / "adapters", ROOT / "runtime", *filter(None, sys.path[1:])]
        variables = {VARIABLE: str(place), "PYTHONPATH": os.pathsep.join(map(str, paths))}
        start = time.monotonic()
        code = subprocess.run(
            [*command, *options, *map(str, chosen)],
            cwd=directory,
            env=os.environ | variables,
            check=False,
        ).returncode
        seconds = time.monotonic() - start
        if code not in (0, 1):  # neither passed nor failed: pytest itself says why
            reason = f"pytest ended with exit code {code}"
            return Result(0, {}, (reason,), 0, Counter(), seconds)
        cases = list(ET.parse(report).getroot().iter("testcase"))
    return _result(cases, seconds)


def _result(cases: list[ET.Element], seconds: float) -> Result:
    excluded, failed, skipped = {}, [], 0
    notes: Counter[tuple[str, str]] = Counter()
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        skip = case.find("skipped")
        if {"failure", "error"} & {part.tag for part in case}:
            failed.append(name)
        elif skip is not None and skip.get("type") == "pytest.xfail":
            excluded[name] = str(skip.get("message"))
        elif skip is not None:
            skipped += 1
        else:
            notes.update((str(p.get("name")), str(p.get("value"))) for p in case.iter("property"))
    passed = len(cases) - len(failed) - len(excluded) - skipped
    return Result(passed, excluded, tuple(failed), skipped, notes, seconds)


def show(results: dict[str, Result]) -> None:
    """Prints the table, then what is excluded and why, what was left out, and what failed."""
    columns = ("tests", "passed", "excluded", "failed", "skipped", "seconds")
    print("\n" + f"{'suite':24}" + "".join(f"{c:>10}" for c in columns))
    for name, r in results.items():
        numbers = (r.passed, len(r.excluded), len(r.failed), r.skipped, round(r.seconds))
        whole = r.passed + len(r.excluded) + len(r.failed)
        print(f"{name:24}" + "".join(f"{n:>10}" for n in (whole, *numbers)))
    for name, r in results.items():
        print(f"\n{name}")
        for reason in dict.fromkeys(r.excluded.values()):
            print(f"  excluded: {reason}")
            print(*(f"    {test}" for test, why in r.excluded.items() if why == reason), sep="\n")
        for what in sorted({what for what, _ in r.notes}):
            print(f"  {what}, in so many of the tests passed:")
            for (kind, note), count in sorted(r.notes.items()):
                if kind == what:
                    print(f"    {note}: {count}")
        for test in r.failed:
            print(f"  failed: {test}")


def checked(parser: argparse.ArgumentParser, host: str, path: Path | None) -> Path | None:
    """Returns the path of a checkout; ends the program if it is none, or the host is missing."""
    if path is None:
        return None
    folder, package, known_by = HOSTS[host]
    if not (path / folder / known_by).is_file():
        parser.error(
            f"--{host} is no checkout of the host: got {path}, expected a folder with "
            f"{folder}/{known_by}. Check out its repository, or unpack its source archive, at the "
            "version that is installed."
        )
    if importlib.util.find_spec(package) is None:
        parser.error(
            f"--{host} needs the host itself: got no package {package}, expected one of the "
            "version of the checkout. Install it, or put it on PYTHONPATH."
        )
    return path.resolve()


def main() -> int:
    """Runs the selected suites; returns 1 if any test failed in any of them."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,  # what is not named here is pytest's
    )
    for host, (folder, package, _) in HOSTS.items():
        parser.add_argument(
            f"--{host}", type=Path, metavar="PATH", help=f"checkout of {package}, with {folder}/"
        )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=SUITES,
        default=list(SUITES),
        metavar="SUITE",
        help=", ".join(SUITES),
    )
    parser.add_argument("--stock", action="store_true", help="leave the host's algorithm in place")
    arguments, options = parser.parse_known_args()
    checkouts = {host: checked(parser, host, getattr(arguments, host)) for host in HOSTS}
    if not any(checkouts.values()):
        parser.error(
            "no checkout of a host: got no path, expected one of "
            f"{', '.join(f'--{host} PATH' for host in HOSTS)}. Nothing is fetched."
        )
    results: dict[str, Result] = {}
    for name in arguments.only:
        checkout = checkouts[SUITES[name][0]]
        if checkout is None or (arguments.stock and SUITES[name][1].way != "online"):
            continue
        print(f"\n== {name}", flush=True)
        results[name] = run(name, checkout, options, stock=arguments.stock)
    show(results)
    return int(any(result.failed for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
