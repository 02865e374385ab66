"""An order's options: their names, meanings, units, allowed values and defaults, all in :class:`Ticket`.

The command line, its help, notebook 08 and the table of docs/order.md are made from the fields of Ticket.
"""

import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from flowoe_lib.market.ranges import TESTED_BUCKETS

__all__ = ["USUAL_AVERSION", "OrderError", "Ticket", "described_options", "read_options", "refuse_unknown"]


USUAL_AVERSION = 5e-4


BUCKET_MINUTES = 10
"""Length of a bucket, if the number of buckets is within the tested range."""


DAY_MINUTES = 24 * 60


class OrderError(ValueError):
    """An order that cannot be executed as asked; the message names field, value and what is allowed."""


def _finite(value: object) -> bool:
    """Whether ``value`` is a finite number, numpy's included; True and False are not numbers here."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_clock(value: object) -> bool:
    return re.fullmatch(r"\d{1,2}:[0-5]\d", str(value)) is not None


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)


@dataclass(frozen=True)
class _Kind:
    """The allowed values of an option, in words and as a check, and a function that reads one from text."""

    allowed: str
    accepts: Callable[[Any], bool]
    read: Callable[[str], Any] = float


_SIDE = _Kind("must be buy or sell", lambda x: x in ("buy", "sell"), str)
_NUMBER = _Kind("must be a finite number", _finite)
_POSITIVE = _Kind("must be finite and > 0", lambda x: _finite(x) and x > 0)
_NOT_NEGATIVE = _Kind("must be finite and >= 0", lambda x: _finite(x) and x >= 0)
_FRACTION = _Kind("must be a number within (0, 1]", lambda x: _finite(x) and 0 < x <= 1)
_CLOCK = _Kind("must be a time of day such as 09:30", _is_clock, str)
_SESSION = _Kind(
    "must be two times of day, open and close, such as 09:30 16:00",
    lambda x: isinstance(x, tuple | list) and len(x) == 2 and all(map(_is_clock, x)),
    str.split,
)


def _option(kind: _Kind, default: Any, text: str, unit: str = "", otherwise: str = "") -> Any:
    """A field; ``otherwise`` describes a default of None, and where it is empty the option is required."""
    metadata = {"kind": kind, "help": text, "unit": unit, "otherwise": otherwise}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Ticket:
    """An order with its options, as a desk writes it."""

    side: str = _option(_SIDE, None, "buy or sell")
    shares: float = _option(_POSITIVE, None, "size of the order", "shares")
    adv: float | None = _option(
        _POSITIVE, None, "average daily volume", "shares", "mean of the last 21 days of the bars"
    )
    start: str | None = _option(_CLOCK, None, "time of day when execution starts", "HH:MM", "the open")
    end: str | None = _option(_CLOCK, None, "time of day when execution ends", "HH:MM", "the close")
    risk_aversion: float | None = _option(_POSITIVE, None, "risk aversion lambda", "per bps", "0.0005")
    cost_limit_bps: float | None = _option(
        _POSITIVE,
        None,
        "cost that 95 of 100 days are to stay below, by the lowest risk aversion that does so",
        "bps",
        "none, risk_aversion is used as it is",
    )
    drift_bps: float = _option(
        _NUMBER, 0.0, "price change expected over the window, whatever the side", "bps"
    )
    drift_sd_bps: float = _option(
        _NOT_NEGATIVE, 0.0, "standard deviation of the unknown part of the drift over the window", "bps"
    )
    participation_cap: float | None = _option(
        _FRACTION,
        None,
        "largest share of the volume expected in a bucket that may be traded",
        "share of expected volume",
        "no cap",
    )
    illiquidity: float = _option(_POSITIVE, 1.0, "temporary impact over the published one", "multiple")
    beta: float = _option(_FRACTION, 0.6, "exponent of temporary impact")
    session: tuple[str, str] = _option(
        _SESSION,
        ("09:30", "16:00"),
        "open and close of the market, separated by a space; 27:00 is 3:00 of the next day",
        "HH:MM HH:MM",
    )

    def __new__(cls, *values: object, **options: object) -> Self:
        """Raise OrderError for unknown options, by name."""
        refuse_unknown(options, [f.name for f in fields(cls)])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), f.metadata["kind"]
            if not ((value is None and f.metadata["otherwise"]) or kind.accepts(value)):
                raise OrderError(f"{f.name} = {value!r}: {kind.allowed}")
        if self.risk_aversion is not None and self.cost_limit_bps is not None:
            raise OrderError("risk_aversion and cost_limit_bps: only one of them may be given")
        session = f"session = {' to '.join(self.session)}"
        opening, closing = map(_minutes, self.session)
        if opening >= closing:
            raise OrderError(f"{session}: must close after it opens; 3:00 of the next day is 27:00")
        if closing - opening > DAY_MINUTES:
            raise OrderError(f"{session}: must be at most a day long")
        start, end = self.window
        if not opening <= start < end <= closing:
            given = f"start = {self.start or self.session[0]}, end = {self.end or self.session[1]}"
            raise OrderError(f"{given}: must be in order within the session, {' to '.join(self.session)}")

    @property
    def window(self) -> tuple[int, int]:
        """Start and end of execution, minutes since midnight."""
        return _minutes(self.start or self.session[0]), _minutes(self.end or self.session[1])

    @property
    def part(self) -> tuple[float, float]:
        """Start and end of execution as fractions of the session."""
        opening, closing = map(_minutes, self.session)
        start, end = ((t - opening) / (closing - opening) for t in self.window)
        return start, end

    @property
    def n_buckets(self) -> int:
        """Number of buckets of ten minutes, at least 13 and at most 78."""
        start, end = self.window
        fewest, most = TESTED_BUCKETS
        return min(max(round((end - start) / BUCKET_MINUTES), fewest), most)


def refuse_unknown(given: Mapping[str, object], known: Iterable[str]) -> None:
    """Check the names of options.

    Raises
    ------
    OrderError
        For a name that is not among ``known``; the message names the nearest one.
    """
    known = list(known)
    for name, value in given.items():
        if name not in known:
            [nearest] = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.0)
            raise OrderError(
                f"{name} = {value!r}: no such option; the nearest is {nearest}. All: {', '.join(known)}"
            )


def read_options(texts: Mapping[str, str]) -> dict[str, Any]:
    """Values of options from their texts; a text that cannot be read is kept, for Ticket to refuse it."""
    values: dict[str, Any] = dict(texts)
    for f in fields(Ticket):
        try:
            values[f.name] = f.metadata["kind"].read(texts[f.name])
        except (KeyError, ValueError):
            continue
    return values


def described_options() -> dict[str, tuple[str, str, str]]:
    """Meaning, unit and default, in words, of each option."""
    return {
        f.name: (f.metadata["help"], f.metadata["unit"], f.metadata["otherwise"] or _shown(f.default))
        for f in fields(Ticket)
    }


def _shown(default: Any) -> str:
    if default is None:
        return "required"
    return " ".join(default) if isinstance(default, tuple) else f"{default:g}"


_PARAMETERS = "\n".join(
    f"    {name} : {unit or 'no unit'}, {default}\n        {meaning}"
    for name, (meaning, unit, default) in described_options().items()
)
Ticket.__doc__ = f"""{Ticket.__doc__}

    Parameters
    ----------
{_PARAMETERS}

    Raises
    ------
    OrderError
        If an option is unknown, missing or out of its range; the message names the option.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> fo.Ticket(side="sell", shares=250_000, start="10:00", end="15:00").n_buckets
    30
    >>> fo.Ticket(side="sell", shares=250_000, participation=0.1)
    Traceback (most recent call last):
    flowoe_lib.desk.ticket.OrderError: participation = 0.1: no such option; the nearest is ...
    """
