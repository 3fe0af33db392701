"""Random numbers by counter: against published answers, and the kernel against the reference."""

import math
from collections.abc import Iterator

import pytest
import torch

from gtp_policy.kernels import philox
from gtp_policy.times import (
    KarrasTimes,
    LinearTimes,
    LogitNormalPairs,
    LogNormalIndex,
    TimeLaw,
    UniformIndex,
    UniformPairs,
    masses,
    times_at_shares,
    times_of,
)
from tests.interpreted import interpreter, needs_triton

CPU = torch.device("cpu")
# Counter, key, answer: of Random123, the authors' own library (kat_vectors, philox4x32 10).
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_authors_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    found = philox.philox(key[0] | key[1] << 32, *(torch.tensor([word]) for word in counter))
    assert [int(word) for word in found] == answer


def test_numbers_depend_on_where_they_are_used_alone() -> None:
    key = philox.key_of(3)
    many = philox.words(key, "z", 7, 100, 5, CPU)[0]
    few = philox.words(key, "z", 7, 10, 2, CPU)[0]
    assert torch.equal(many[:10, :2], few)
    assert len(many.unique()) == 500
    for other in (
        philox.words(philox.key_of(4), "z", 7, 10, 2, CPU)[0],
        philox.words(key, "times", 7, 10, 2, CPU)[0],
        philox.words(key, "z", 7 + 2**32, 10, 2, CPU)[0],
    ):
        assert not (other == few).any()


def test_laws() -> None:
    """Each bound is passed by chance about once in 10^5 keys, and the key is fixed."""
    words = philox.words(philox.key_of(0), "z", 0, 1000, 100, CPU)
    n = 100_000
    uniform, normal, below = philox.uniform(words), philox.normal(words), philox.below(words, 7)
    assert 0 <= float(uniform.min()) <= float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 4.5 / math.sqrt(12 * n)
    assert abs(float(normal.mean())) < 4.5 / math.sqrt(n)
    assert abs(float(normal.square().mean()) - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(float(normal.pow(4).mean()) - 3) < 4.5 * math.sqrt(96 / n)
    tail = float((normal.abs() > 3).float().mean())
    assert abs(tail - 0.0026998) < 4.5 * math.sqrt(0.0027 / n)
    counts = torch.bincount(below.flatten(), minlength=7)
    assert len(counts) == 7
    assert float(((counts - n / 7) ** 2 / (n / 7)).sum()) < 36  # chi squared, 6 degrees


def test_the_ends_of_the_range_are_finite() -> None:
    ends = torch.tensor([[0, 2**32 - 1]])
    assert philox.normal((ends, ends)).isfinite().all()
    assert philox.below((ends, ends), 2**31 - 1).tolist() == [[0, 2**31 - 2]]


def test_updates_on_the_cpu_draw_as_they_always_did() -> None:
    assert not philox.serves(CPU)
    assert philox.serves(torch.device("cuda", 1))


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    with interpreter():
        yield


LAWS: dict[str, tuple[TimeLaw, str, str]] = {
    "uniform": (UniformIndex(), "uniform", "adjacent"),
    "log-normal, dyadic": (LogNormalIndex(), "dyadic", "midpoint"),
    "zero": (UniformIndex(), "zero", "adjacent"),
    "equal": (UniformIndex(), "equal_u", "adjacent"),
    "pairs": (UniformPairs(edge=0.3), "uniform", "between"),
    "logit-normal pairs": (LogitNormalPairs(mean=-0.4, s_std=0.5), "uniform", "between"),
}


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_the_kernel_draws_the_same(name: str, linear: bool, interpreted: None) -> None:
    from gtp_policy.kernels import draws_triton

    law, s_rule, u_rule = LAWS[name]
    schedule = LinearTimes(rho=2.0) if linear else KarrasTimes()
    of_pairs, stages, batch, jumps, seeds = u_rule == "between", (6, 10), 20, 17, (5, 2**40)
    nodes = {} if of_pairs else {n: schedule.grid(n) for n in stages}
    grids = draws_triton.Grids(nodes, {n: masses(schedule, n, law) for n in nodes}, CPU)
    numbers = law.model_dump(exclude={"kind"}) if of_pairs else {}
    laws = draws_triton.Laws(
        law={"uniform_pairs": 1, "logitnormal_pairs": 2}.get(law.kind, 0),
        s_rule=("uniform", "zero", "equal_u", "dyadic").index(s_rule),
        midpoint=u_rule == "midpoint",
        max_gap=3,
        linear=linear,
        most=schedule.t_max,
        **numbers,
    )
    sizes = draws_triton.Sizes(
        seeds=2,
        batch=batch,
        jumps=jumps,
        actions=2,
        noise=4,
        backup=2,
        baseline=3,
        guide=2,
        flow=True,
    )
    data = torch.arange(50.0).unsqueeze(1).expand(-1, 3).contiguous()
    draws = draws_triton.Draws(sizes, laws, grids, torch.zeros(1), data)
    update, n = 2**33 + 5, 10
    words = draws_triton.words(
        update, n, grids.offsets.get(n, 0), 0.3, [0.5], draws_triton.keys_of(seeds)
    )
    record = torch.frombuffer(bytearray(words), dtype=torch.int32)
    assert len(record) == draws_triton.record_length(2)
    assert record.view(torch.float32)[draws_triton.RATES] == 0.5
    draws.fill(record)
    for i, seed in enumerate(seeds):

        def drawn(stream: str, rows: int, columns: int, seed: int = seed) -> tuple:
            return philox.words(philox.key_of(seed), stream, update, rows, columns, CPU)

        index = philox.below(drawn("batch", batch, 1), len(data)).squeeze(1)
        assert torch.equal(draws.rows[i], data[index])
        for found, stream in ((draws.backup, "backup"), (draws.baseline, "baseline")):
            copies = found.shape[1]
            expected = philox.normal(drawn(stream, batch, copies * 4)).view(batch, copies, 4)
            torch.testing.assert_close(found[i], expected.transpose(0, 1))
        torch.testing.assert_close(draws.guide[i], philox.normal(drawn("guidance", batch, 2)))
        torch.testing.assert_close(draws.z[i], philox.normal(drawn("z", batch, 2)))
        of_times = drawn("times", jumps, 3)
        raw = philox.uniform(of_times).T.contiguous()
        if law.kind == "logitnormal_pairs":
            raw = torch.cat([philox.normal(of_times).T[:2], raw[2:]])
        expected = times_of(
            raw, schedule, n, law=law, max_gap=3, s_rule=s_rule, u_rule=u_rule, inner=0.3
        )
        for a, b in zip((draws.t[i], draws.u[i], draws.s[i]), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        share = philox.uniform(drawn("flow", batch, 1)).squeeze(1)
        torch.testing.assert_close(draws.tau[i], times_at_shares(schedule, share, torch.float32))
