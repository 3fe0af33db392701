"""What shared updates cost: that it is measured, and the estimate's arithmetic by hand."""

import pytest

from benchmarks import scaling


@pytest.mark.slow
def test_it_measures_and_counts() -> None:
    record = scaling.run(1, 1, (16, 32))
    assert {"one", "two", "times_faster"} <= record["measured"]["16"].keys()
    learner, _ = scaling.prepared()
    trained = [*learner.actor.parameters(), *(learner.critic or learner).parameters()]
    numbers = sum(p.numel() for p in trained)
    # Every gradient, the advantages of half of 16 rows, and metrics.
    assert numbers <= record["bytes"] / 4 <= numbers + 8 + 32
    assert record["messages"] == 4
    assert record["flops_per_row"] > 1e6 > record["flops_besides"] / 1e3


def test_the_estimate_is_that_of_a_ring() -> None:
    machine = scaling.Machine(
        processes=2, flops_per_second=1e9, launch_seconds=0.0, kernels=1, message_seconds=1e-3
    )
    # 2 ms of messages and 2 (1/2) 8 MB / 1 GB/s: 10 ms. A row takes 1 ms, of which half is saved.
    found = scaling.estimate(1e6, 8e6, 2, 1e9, machine)
    assert found["wire_ms"] == pytest.approx(10)
    assert found["pays_from"] == 32  # 20 rows and more, and 32 is the next power of two
    assert found["speedup_32"] == pytest.approx(32 / 26)
