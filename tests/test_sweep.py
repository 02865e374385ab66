"""A sweep gives the results of the serial loop on every engine."""

import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import pytest
import torch
from distributed import KilledWorker, LocalCluster, get_worker
from loky.process_executor import TerminatedWorkerError
from torch import Tensor

from flowoe_lib.randomness import generator
from flowoe_lib.recipes import LOADED
from flowoe_lib.sweep import sweep


def drawn(seed: int, scale: float) -> tuple[float, int]:
    return (scale * torch.randn(3, generator=generator(seed, "sweep")).sum()).item(), torch.get_num_threads()


def failing(seed: int) -> None:
    raise ValueError(f"seed {seed}")


def worked(start: Tensor, seed: int) -> dict[str, Tensor]:
    """Enough arithmetic for its last digits to depend on how it is done, in a layout of its own."""
    weights = torch.randn(*start.shape, generator=generator(seed, "sweep"))
    return {"product": (weights @ start).softmax(0).T, "mean": weights.double().exp().mean()[None].expand(4)}


def noted(runs: Path, i: int) -> tuple[int, int]:
    """Note the run, and kill this worker once: after three tasks of its own, all of which were fetched."""
    with runs.open("a") as file:
        file.write(f"{os.getpid()} {i}\n")
    tasks_here = [line for line in runs.read_text().splitlines() if line.startswith(f"{os.getpid()} ")]
    if len(tasks_here) == 4:
        try:
            runs.with_suffix(".killed").touch(exist_ok=False)
        except FileExistsError:
            return i, os.getpid()
        deadline = time.monotonic() + 60
        while get_worker().data and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return i, os.getpid()


def deadly() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def changing(i: int) -> int:
    """Make the worker's library another one."""
    LOADED.clear()
    return i


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """A scheduler with the workers of the test's parameter."""
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"} | request.param
    with LocalCluster(memory_limit=None, **options) as cluster:
        monkeypatch.setenv("FLOWOE_ENGINE", cluster.scheduler_address)
        yield cluster.scheduler_address


def test_results_come_in_order_and_equal_the_serial_ones() -> None:
    work = [(seed, 0.5) for seed in range(6)]
    parallel = sweep(drawn, work)
    assert [value for value, _ in parallel] == [drawn(*w)[0] for w in work]
    assert {threads for _, threads in parallel} == {1}


def test_a_failing_task_is_reported() -> None:
    with pytest.raises(ValueError, match="seed 3"):
        sweep(failing, [(3,)])


def test_a_local_worker_that_dies_ends_the_sweep() -> None:
    with pytest.raises(TerminatedWorkerError):
        sweep(deadly, [(), ()])
    assert sweep(abs, [(-1,)]) == [1]


def assert_as_on_loky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are the same to the last bit and in memory order, which decides the last bit of later sums."""
    work = [(torch.ones(97, 97), seed) for seed in range(5)]
    here = sweep(worked, work)
    threads = {threads for _, threads in sweep(drawn, [(0, 1.0)])}
    monkeypatch.setenv("FLOWOE_ENGINE", "loky")
    for one, other in zip(sweep(worked, work), here, strict=True):
        for key, tensor in one.items():
            assert tensor.numpy().tobytes() == other[key].numpy().tobytes()
            assert (tensor.dtype, tensor.stride()) == (other[key].dtype, other[key].stride())
    assert threads == {1}


@pytest.mark.parametrize("engine", [{"n_workers": 2}], indirect=True)
def test_a_cluster_gives_the_tensors_of_loky(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_as_on_loky(monkeypatch)


def test_local_dask_gives_the_tensors_of_loky(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWOE_ENGINE", "local-dask")
    assert_as_on_loky(monkeypatch)


@pytest.mark.parametrize("engine", [{}], indirect=True)
def test_a_single_worker_is_used_and_a_failing_task_is_reported(engine: str) -> None:
    assert sweep(os.getpid, [()]) != [os.getpid()]
    with pytest.raises(ValueError, match="seed 3"):
        sweep(failing, [(3,), (3,)])


@pytest.mark.parametrize("engine", [{"n_workers": 2}], indirect=True)
def test_only_the_unfinished_tasks_of_a_dead_worker_run_again(engine: str, tmp_path: Path) -> None:
    done = sweep(noted, [(tmp_path / "runs", i) for i in range(12)])
    assert [i for i, _ in done] == list(range(12))
    started = [tuple(map(int, line.split())) for line in (tmp_path / "runs").read_text().splitlines()]
    again = [i for i, times in Counter(i for _, i in started).items() if times > 1]
    assert len(started) == 13
    assert len(again) == 1
    first, second = (pid for pid, i in started if i == again[0])
    assert done[again[0]] == (again[0], second)
    assert first != second
    assert [pid for _, pid in done].count(first) == 3


def test_a_task_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWOE_ENGINE", "local-dask")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), pytest.raises(KilledWorker):
        sweep(deadly, [()])


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        ({"preload": "import sys; sys.modules['flowoe_lib'] = None"}, "cannot import flowoe_lib"),
        ({"preload": "from flowoe_lib.recipes import LOADED; LOADED.clear()"}, "has other sources"),
        ({"threads_per_worker": 2}, "has 2 threads"),
    ],
    indirect=["engine"],
    ids=["missing", "other", "threads"],
)
def test_a_worker_that_does_not_fit_is_named(engine: str, fault: str) -> None:
    with pytest.raises(RuntimeError, match=rf"Dask worker tcp://\S+ {fault}.*start"):
        sweep(deadly, [()])


@pytest.mark.parametrize("engine", [{}], indirect=True)
def test_a_worker_that_no_longer_fits_is_named(engine: str) -> None:
    with pytest.raises(RuntimeError, match=r"Dask worker tcp://\S+ has other sources"):
        sweep(changing, [(0,), (1,)])


@pytest.mark.parametrize("engine", [{"n_workers": 0}], indirect=True)
def test_a_scheduler_without_workers_is_named(engine: str) -> None:
    with pytest.raises(RuntimeError, match=f"with workers answers at {re.escape(engine)}: .*0/1"):
        sweep(deadly, [()])


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"220\r\n"])
def test_a_server_that_is_no_scheduler_is_named(greeting: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("FLOWOE_ENGINE", address)

        def greet() -> None:
            with server.accept()[0] as connection:
                connection.sendall(greeting)

        greeted = pool.submit(greet)
        with pytest.raises(RuntimeError, match=f"no Dask scheduler .* at {address}: .* another protocol"):
            sweep(deadly, [()])
        greeted.result()


@pytest.mark.parametrize("silent", [False, True])
def test_a_missing_scheduler_is_named(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        # Bound only, the port refuses connections; listened on, it takes them and never answers.
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("FLOWOE_ENGINE", address)
        with pytest.raises(RuntimeError, match=f"no Dask scheduler .* at {address}"):
            sweep(deadly, [()])


@pytest.mark.parametrize("name", ["", "dask", "http://host:8786", "tcp://host"])
def test_an_unknown_engine_is_refused_before_any_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWOE_ENGINE", name)
    with pytest.raises(ValueError, match=f"FLOWOE_ENGINE='{name}': must be loky, local-dask, tcp"):
        sweep(deadly, ((),))


def test_missing_dask_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWOE_ENGINE", "local-dask")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"\.\[cluster\]"):
        sweep(deadly, [()])
