"""Every test runs on one thread and from its own fork of the global random state."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# Speed differs between machines; examples are the same ones in every run.
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def one_thread_and_seed() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
