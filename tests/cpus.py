"""Runs the numerical tests as other processors and other numbers of threads would compute.

    python -m tests.cpus                          every setting, a table at the end
    python -m tests.cpus --only "two threads"     some of them
    python -m tests.cpus -x --lf                  what follows is pytest's

Libraries choose their code by the processor: torch, MKL, oneDNN and numba each have several, which
round differently. Environment variables make them take another one on the same machine. What the
project promises to the bit has to hold under each.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

# What computes with floating-point numbers. The rest of the suite compares texts, files and errors.
# Of these without what is slow: each setting is to take minutes.
NUMERICAL = (
    "gtp_policy",
    "tests/adapters/sb3/test_sb3_files.py",
    "tests/adapters/sb3/test_sb3_offline.py",
    "tests/adapters/sb3/test_sb3_online.py",
    "tests/adapters/sb3/test_sb3_policies.py",
    "tests/adapters/test_hosts.py",
    "tests/adapters/tianshou/test_algorithm.py",
    "tests/adapters/tianshou/test_policy.py",
    "tests/adapters/tianshou/test_state.py",
    "tests/engine",
    "tests/kernels",
    *(
        f"tests/reliability/test_trials.py::test_a_trial_passes[{trial}]"
        for trial in ("A4", "C3", "C4", "E1", "E2", "E3", "E4")
    ),
    "tests/test_acting.py",
    "tests/test_actor.py",
    "tests/test_advantage_weighter.py",
    "tests/test_checkpoint.py",
    "tests/test_choices.py",
    "tests/test_critic.py",
    *(
        f"tests/test_documentation.py::test_python_code_of_a_page_runs_in_order[docs/how-to/{page}.md]"
        for page in ("choose-steps", "from-sb3", "from-tianshou", "resume-exactly")
    ),
    "tests/test_fixed_point.py",
    "tests/test_folding.py",
    "tests/test_functional.py",
    "tests/test_guidance.py",
    "tests/test_learner.py",
    "tests/test_loss.py",
    "tests/test_metrics.py",
    "tests/test_networks.py",
    "tests/test_presets.py",
    "tests/test_rounding.py",
    "tests/test_samplers.py",
    "tests/test_teachers.py",
    "tests/test_times.py",
    "tests/testing",
)

# Of those, what does not depend on how a processor computes: kernels that are compiled for a GPU or
# interpreted one thread at a time, rates of false alarms, mutants that are far off.
ELSEWHERE = "fits_on_a_gpu or test_cuda_graph or test_statistics or mutants or philox"

THREADS = {"GTP_TEST_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
# What processors without AVX-512 take, as many of AMD's.
AVX2 = {
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
OLDEST = {
    "MKL_CBWR": "COMPATIBLE",
    "ATEN_CPU_CAPABILITY": "default",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "NUMBA_CPU_NAME": "generic",
    "OPENBLAS_CORETYPE": "Prescott",
}
# Environment variables, and options of pytest, by the name of the setting.
SETTINGS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "this machine": ({}, ()),
    "MKL: compatible": ({"MKL_CBWR": "COMPATIBLE"}, ()),
    "MKL: SSE4.2": ({"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}, ()),
    "MKL: AVX2": ({"MKL_ENABLE_INSTRUCTIONS": "AVX2"}, ()),
    "torch: no vectors": ({"ATEN_CPU_CAPABILITY": "default"}, ()),
    "torch: AVX2": ({"ATEN_CPU_CAPABILITY": "avx2"}, ()),
    "oneDNN: SSE4.1": ({"DNNL_MAX_CPU_ISA": "SSE41"}, ()),
    "numba: generic": ({"NUMBA_CPU_NAME": "generic"}, ()),
    "two threads": (THREADS, ()),
    "all oldest, two threads": (OLDEST | THREADS, ()),
    "all AVX2": (AVX2, ()),
    "rows by their place": ({}, ("-p", "tests.uneven")),
}


class Result(NamedTuple):
    """What became of the tests under a setting: numbers, names of those that failed, seconds."""

    passed: int
    failed: tuple[str, ...]
    skipped: int
    seconds: float


def run(name: str, options: list[str]) -> Result:
    """Runs the numerical tests under a setting, in a separate process."""
    variables, own = SETTINGS[name]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += [
            f"--junitxml={report}",
            "-k",
            f"not ({ELSEWHERE})",
            "-m",
            "not slow",
            *own,
            *options,
            *NUMERICAL,
        ]
        start = time.monotonic()
        # Rounding shows in the first examples or in none.
        env = os.environ | {"HYPOTHESIS_PROFILE": "few"} | variables
        code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        seconds = time.monotonic() - start
        if code not in (0, 1):  # neither passed nor failed: pytest itself says why
            return Result(0, (f"pytest ended with exit code {code}",), 0, seconds)
        cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
    skipped = sum(case.find("skipped") is not None for case in cases)
    names = tuple(f"{case.get('classname')}::{case.get('name')}" for case in bad)
    return Result(len(cases) - len(bad) - skipped, names, skipped, seconds)


def main() -> int:
    """Runs the selected settings; returns 1 if any test failed under any of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments, options = parser.parse_known_args()
    results: dict[str, Result] = {}
    for name in arguments.only:
        print(f"\n== {name}", flush=True)
        results[name] = run(name, options)
    print(f"\n{'setting':26}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for name, (passed, failed, skipped, seconds) in results.items():
        print(f"{name:26}{passed:>8}{len(failed):>8}{skipped:>8}{seconds:>9.0f}")
        print(*(f"    {test}" for test in failed), sep="\n", end="\n" if failed else "")
    return int(any(result.failed for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
