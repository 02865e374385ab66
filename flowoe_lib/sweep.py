"""Independent tasks side by side, one thread each."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from tqdm.auto import tqdm

__all__ = ["sweep"]

T = TypeVar("T")


def _single_threaded(task: Callable[..., T], *arguments: Any) -> T:
    # Torch's own threads fight over the cores that the tasks already use.
    torch.set_num_threads(1)
    return task(*arguments)


def sweep(task: Callable[..., T], arguments: Iterable[tuple[Any, ...]], label: str = "") -> list[T]:
    """``[task(*a) for a in arguments]`` on all cores, in processes; results come in order.

    ``task`` and its arguments must be picklable; a result may not depend on which process made it.
    """
    work = list(arguments)
    runs = Parallel(n_jobs=-1, return_as="generator")(delayed(_single_threaded)(task, *a) for a in work)
    return list(tqdm(runs, total=len(work), desc=label, leave=False, disable=None))
