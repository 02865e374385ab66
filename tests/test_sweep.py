"""A sweep is the serial loop, whatever runs it."""

import pytest
import torch

from flowoe_lib.randomness import generator
from flowoe_lib.sweep import sweep


def drawn(seed: int, scale: float) -> tuple[float, int]:
    return (scale * torch.randn(3, generator=generator(seed, "sweep")).sum()).item(), torch.get_num_threads()


def failing(seed: int) -> None:
    raise ValueError(f"seed {seed}")


def test_results_come_in_order_and_equal_the_serial_ones() -> None:
    work = [(seed, 0.5) for seed in range(6)]
    parallel = sweep(drawn, work)
    assert [value for value, _ in parallel] == [drawn(*w)[0] for w in work]
    assert {threads for _, threads in parallel} == {1}


def test_a_failing_task_is_reported() -> None:
    with pytest.raises(ValueError, match="seed 3"):
        sweep(failing, [(3,)])
