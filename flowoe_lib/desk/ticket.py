"""An order's options: their names, meanings, units, allowed values and defaults, all in :class:`Ticket`.

The command line, its help, notebook 08 and the table of docs/order.md are made from the fields of Ticket.
"""

import difflib
import math
import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
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


def _option(kind: _Kind, text: str, unit: str = "", otherwise: str = "") -> dict[str, Any]:
    """Metadata of a field; ``otherwise`` describes the default if it is None."""
    return {"kind": kind, "help": text, "unit": unit, "otherwise": otherwise}


@dataclass(frozen=True)
class Ticket:
    """An order with its options, as a desk writes it."""

    side: str = field(metadata=_option(_SIDE, "buy or sell"))
    shares: float = field(metadata=_option(_POSITIVE, "size of the order", "shares"))
    adv: float | None = field(
        default=None,
        metadata=_option(_POSITIVE, "average daily volume", "shares", "mean of the last 21 days of the bars"),
    )
    start: str | None = field(
        default=None,
        metadata=_option(_CLOCK, "time of day from which the order is executed", "HH:MM", "the open"),
    )
    end: str | None = field(
        default=None,
        metadata=_option(_CLOCK, "time of day by which the order is complete", "HH:MM", "the close"),
    )
    risk_aversion: float | None = field(
        default=None, metadata=_option(_POSITIVE, "risk aversion lambda", "per bps", f"{USUAL_AVERSION:g}")
    )
    cost_limit_bps: float | None = field(
        default=None,
        metadata=_option(
            _POSITIVE,
            "cost that 95 of 100 days are to stay below, in place of a risk aversion: the lowest risk "
            "aversion that does so is solved for on other simulated days than those of the report",
            "bps",
            "no limit",
        ),
    )
    drift_bps: float = field(
        default=0.0,
        metadata=_option(
            _NUMBER, "price change expected over the window, for a buyer as for a seller", "bps"
        ),
    )
    drift_sd_bps: float = field(
        default=0.0,
        metadata=_option(
            _NOT_NEGATIVE,
            "standard deviation of the unknown part of the drift over the window; flagged, because the "
            "policy was trained on it only without a known drift and with steady variance",
            "bps",
        ),
    )
    participation_cap: float | None = field(
        default=None,
        metadata=_option(
            _FRACTION,
            "largest share of the volume expected in a bucket that any policy may trade in it, on every day",
            "share of volume",
            "no cap",
        ),
    )
    illiquidity: float = field(
        default=1.0, metadata=_option(_POSITIVE, "temporary impact over the published one", "multiple")
    )
    beta: float = field(default=0.6, metadata=_option(_FRACTION, "exponent of temporary impact"))
    session: tuple[str, str] = field(
        default=("09:30", "16:00"),
        metadata=_option(
            _SESSION,
            "open and close of the market, separated by a space; 27:00 is 3:00 of the next day",
            "HH:MM HH:MM",
        ),
    )

    def __new__(cls, *values: object, **options: object) -> Self:
        """Raise OrderError for unknown and for missing options, by name."""
        refuse_unknown(options, _names())
        for f in fields(cls)[len(values) :]:
            if f.default is MISSING and f.name not in options:
                raise OrderError(f"{f.name} is not given: {_kind(f).allowed}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), _kind(f)
            if not (value is None and f.default is None) and not kind.accepts(value):
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


def _kind(option: "Field[Any]") -> _Kind:
    kind: _Kind = option.metadata["kind"]
    return kind


def _names() -> list[str]:
    return [f.name for f in fields(Ticket)]


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
    """Read options from text; an unreadable text is returned as it is, for Ticket to refuse it."""
    values: dict[str, Any] = dict(texts)
    for f in fields(Ticket):
        try:
            values[f.name] = _kind(f).read(texts[f.name])
        except (KeyError, ValueError):
            continue
    return values


def described_options() -> dict[str, tuple[str, str, str]]:
    """Meaning, unit and default of each option, in words."""
    return {f.name: (f.metadata["help"], f.metadata["unit"], _default(f)) for f in fields(Ticket)}


def _default(option: "Field[Any]") -> str:
    if option.default is MISSING:
        return "required"
    if isinstance(option.default, float):
        return f"{option.default:g}"
    return option.metadata["otherwise"] or " ".join(option.default)


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
