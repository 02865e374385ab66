"""Independent tasks side by side, one thread each: on the cores of this machine or on a Dask cluster."""

import logging
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import cloudpickle
import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

from flowoe_lib.store import digest

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["sweep"]


T = TypeVar("T")


def _single_threaded(task: Callable[..., T], *arguments: Any) -> T:
    # Torch's own threads fight over the cores that the tasks already use.
    torch.set_num_threads(1)
    return task(*arguments)


def _unfit(threads: int, library: str | Exception, expected: str) -> str:
    """Why a Dask worker may not give the results that a process gives here; empty if it does."""
    if isinstance(library, Exception):
        return f"cannot import flowoe_lib ({library}): install this checkout there and restart the worker"
    if library != expected:
        return "has other sources of flowoe_lib or other numerical packages: install these and restart it"
    if threads != 1:
        return f"has {threads} threads, whose tasks would share random states: start it with --nthreads 1"
    return ""


def _on_worker(expected: str, call: bytes) -> Any:
    from distributed import get_worker

    # A worker may have joined after the others were checked.
    worker = get_worker()
    if fault := _unfit(worker.state.nthreads, digest({}), expected):
        raise RuntimeError(f"Dask worker {worker.address} {fault}")
    task, arguments, _ = pickle.loads(call)
    return cloudpickle.dumps(task(*arguments))


def _dask_backend(client: "Client", expected: str) -> Any:
    """joblib's Dask backend, for workers that may die.

    As it comes, it never ends when Dask gives a task up, and fails when a worker dies to which it
    scattered an argument.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        def effective_n_jobs(self, n_jobs: int) -> Any:
            # Given one job, joblib would run the tasks in this process.
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func: Any, callback: "Callable[[Future[Any]], None]") -> "Future[Any]":
            [call] = func.items
            # Bytes, because Dask takes tensors and arrays apart and rebuilds them in its own way.
            future = client.submit(_on_worker, expected, cloudpickle.dumps(call), pure=False)
            future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, out: "Future[Any]") -> list[Any]:
            result = pickle.loads(out.result())
            # Dask runs a task again if the worker that still keeps its result dies.
            out.release()
            return [result]

    return Backend(client=client)


@contextmanager
def _backend(engine: str) -> Iterator[Any]:
    if engine == "loky":
        yield engine
        return
    try:
        import dask
        from distributed import Client, LocalCluster
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
            address = urlsplit(engine)
            with socket.create_connection((address.hostname, address.port), timeout=5) as connection:
                # For a server that stays silent, such as Dask's dashboard, a client would wait forever.
                if address.scheme == "tcp":
                    connection.recv(1)
            client = stack.enter_context(Client(engine, timeout=5, set_as_default=False))
            client.wait_for_workers(1, timeout=5)
            threads = client.nthreads()
            ask = partial(client.run, workers=list(threads), on_error="return")
            libraries = client.sync(ask, digest, {}, callback_timeout=10)
        except OSError as error:
            raise RuntimeError(f"no Dask scheduler with workers answers at {engine}: {error}") from error
        expected = digest({})
        for worker, library in libraries.items():
            if fault := _unfit(threads[worker], library, expected):
                raise RuntimeError(f"Dask worker {worker} {fault}")
        yield _dask_backend(client, expected)


def sweep(task: Callable[..., T], arguments: Iterable[tuple[Any, ...]], label: str = "") -> list[T]:
    """``[task(*a) for a in arguments]``, side by side in processes; results come in order.

    ``FLOWOE_ENGINE`` says where: ``loky`` (the default), on all cores; ``local-dask``, the same through
    Dask; ``tcp://host:port`` or ``tls://host:port``, on the workers of that Dask scheduler. ``task`` and
    its arguments must be picklable; a result may not depend on which process made it.

    Raises ValueError for another engine, ImportError without Dask, and RuntimeError for a cluster that
    does not answer, has no workers, or has a worker without this very library.
    """
    engine = os.environ.get("FLOWOE_ENGINE", "loky")
    if not re.fullmatch(r"loky|local-dask|(tcp|tls)://\S+:\d+", engine):
        raise ValueError(
            f"FLOWOE_ENGINE={engine!r}: must be loky, local-dask, tcp://host:port or tls://host:port"
        )
    work = list(arguments)
    with _backend(engine) as backend:
        side_by_side = Parallel(
            n_jobs=-1, backend=backend, return_as="generator", batch_size=1, pre_dispatch="all"
        )
        runs = side_by_side(delayed(_single_threaded)(task, *a) for a in work)
        return list(tqdm(runs, total=len(work), desc=label, leave=False, disable=None))
