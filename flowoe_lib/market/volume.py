"""The volume profile of the day in closed form; the module does not import torch."""

from typing import Any


def traded_by(amplitude: Any, time: Any) -> Any:
    """Share of the day's volume that the market has traded by ``time``, from 0 (open) to 1 (close).

    The integral of u(t) = 1 + A P2(2t - 1), of numbers, arrays or tensors; see
    :func:`flowoe_lib.market.model.volume_profile`.
    """
    x = 2 * time - 1
    return time + amplitude * (x**3 - x) / 4
