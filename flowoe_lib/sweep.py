"""Parallel runs of independent tasks, one thread each, on this machine or on a Dask cluster."""

import concurrent.futures
import logging
import os
import pickle
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import cloudpickle
import torch
from loky import get_reusable_executor
from tqdm.auto import tqdm

from flowoe_lib.recipes import library_digest

T = TypeVar("T")


def _run(call: bytes) -> bytes:
    # More threads would compete for the cores that the other tasks use.
    torch.set_num_threads(1)
    task, arguments = pickle.loads(call)
    result: bytes = cloudpickle.dumps(task(*arguments))
    return result


def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed before it can end its workers."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _processes() -> Iterator[Any]:
    """``submit`` and ``as_completed`` for processes on all cores of this machine."""
    # The allocator is set to keep freed memory for the next simulation, which loky takes for a leak.
    warnings.filterwarnings("ignore", "A worker was restarted", UserWarning)
    executor = get_reusable_executor(
        timeout=300, initializer=_end_with, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"}
    )
    try:
        yield partial(executor.submit, _run), concurrent.futures.as_completed
    except BaseException:
        # Without this, tasks that have started would continue after the failure.
        executor.shutdown(kill_workers=True)
        raise


def _unfit(threads: int, library: str | Exception, expected: str) -> str:
    """Reason why a Dask worker may give other results than a local process; empty if there is none."""
    if isinstance(library, Exception):
        return f"cannot import flowoe_lib ({library}): install this checkout there and restart the worker"
    if library != expected:
        return "has other sources of flowoe_lib or other numerical packages: install these and restart it"
    if threads != 1:
        return f"has {threads} threads, whose tasks would share random states: start it with --nthreads 1"
    return ""


def _run_on_dask(expected: str, call: bytes) -> bytes:
    from distributed import get_worker

    # A worker may have joined after the others were checked.
    worker = get_worker()
    if fault := _unfit(worker.state.nthreads, library_digest(), expected):
        raise RuntimeError(f"Dask worker {worker.address} {fault}")
    return _run(call)


@contextmanager
def _dask(engine: str) -> Iterator[Any]:
    """``submit`` and ``as_completed`` for the workers of a Dask scheduler."""
    try:
        import dask
        from distributed import Client, LocalCluster, as_completed
    except ImportError as error:
        raise ImportError(f'FLOWOE_ENGINE={engine} needs Dask: pip install -e ".[cluster]"') from error
    with ExitStack() as stack:
        # Demonstrations take tens of MB, and Dask's warning would end up in the notebooks.
        stack.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"}))
        if engine == "local-dask":
            cluster = LocalCluster(
                threads_per_worker=1, memory_limit=None, dashboard_address=":0", silence_logs=logging.ERROR
            )
            engine = stack.enter_context(cluster).scheduler_address
        try:
            _greet(engine)
            client = stack.enter_context(Client(engine, timeout=5, set_as_default=False))
            client.wait_for_workers(1, timeout=5)
            threads = client.nthreads()
            ask = partial(client.run, workers=list(threads), on_error="return")
            libraries = client.sync(ask, library_digest, callback_timeout=30)
        # A server of another kind may make the client fail in any way.
        except Exception as error:
            raise RuntimeError(f"no Dask scheduler with workers answers at {engine}: {error}") from error
        expected = library_digest()
        for worker, library in libraries.items():
            if fault := _unfit(threads[worker], library, expected):
                raise RuntimeError(f"Dask worker {worker} {fault}")
        # Bytes, because Dask's own serialisation changes the memory layout of tensors and arrays.
        yield (
            partial(client.submit, _run_on_dask, expected, pure=False),
            partial(as_completed, loop=client.loop),
        )


def _greet(address: str) -> None:
    """Raise OSError unless the server sends a greeting as a Dask scheduler does.

    Dask's client would wait forever for a server that sends nothing, such as Dask's dashboard. It would read
    the greeting of another server, such as SSH, as the length of a message that exceeds all memory.
    """
    parts = urlsplit(address)
    with (
        socket.create_connection((parts.hostname, parts.port), timeout=5) as connection,
        connection.makefile("rb") as stream,
    ):
        if parts.scheme == "tcp":
            length = stream.read(8)
            if len(length) < 8 or int.from_bytes(length, "little") > 1_000_000:
                raise OSError("the server there speaks another protocol")


def sweep(task: Callable[..., T], arguments: Iterable[tuple[Any, ...]], label: str = "") -> list[T]:
    """Run a task on many arguments in parallel processes, with one thread each.

    The environment variable ``FLOWOE_ENGINE`` chooses where: ``loky`` (the default) on all cores of this
    machine, ``local-dask`` on the same cores through Dask, ``tcp://host:port`` or ``tls://host:port`` on the
    workers of that Dask scheduler. Results do not depend on the engine.

    Parameters
    ----------
    task : callable
        A function that can be pickled, whose result does not depend on the process that runs it.
    arguments : iterable of tuple
        Positional arguments of each call.
    label : str
        Label of the progress bar.

    Returns
    -------
    list
        Results in the order of ``arguments``.

    Raises
    ------
    ValueError
        For an unknown engine.
    ImportError
        If the engine needs Dask and it is not installed.
    RuntimeError
        If the cluster does not answer, has no workers, or has a worker with other sources or packages.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> fo.sweep(pow, [(2, 3), (3, 2)])
    [8, 9]
    """
    engine = os.environ.get("FLOWOE_ENGINE", "loky")
    if not re.fullmatch(r"loky|local-dask|(tcp|tls)://\S+:\d+", engine):
        raise ValueError(
            f"FLOWOE_ENGINE={engine!r}: must be loky, local-dask, tcp://host:port or tls://host:port"
        )
    results: dict[int, T] = {}
    with _processes() if engine == "loky" else _dask(engine) as (submit, as_completed):
        places = {submit(cloudpickle.dumps((task, a))): i for i, a in enumerate(arguments)}
        for future in tqdm(as_completed(places), total=len(places), desc=label, leave=False, disable=None):
            results[places[future]] = pickle.loads(future.result())
            # Releases the result: Dask would run the task again if the worker that holds it died.
            future.cancel()
    return [results[i] for i in range(len(results))]
