"""Every test runs on one thread and from its own fork of the global random state."""

import importlib
from collections.abc import Iterator
from itertools import starmap

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


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """Sweeps of studies run one after the other: starting processes takes longer than small tasks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ablations", "clips", "opponents", "side_by_side"):
            module = importlib.import_module(f"flowoe_lib.studies.{name}")
            patch.setattr(module, "sweep", lambda task, arguments, label="": list(starmap(task, arguments)))
        yield
