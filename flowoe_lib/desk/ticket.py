"""An order's options: their names, meanings, units, allowed values and defaults, all in :class:`Ticket`.

The command line, its help, notebook 18 and the table of docs/order.md are made from the fields of Ticket.
"""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from flowoe_lib.evaluation.tested import TESTED_BUCKETS

USUAL_AVERSION = 5e-4


BUCKET_MINUTES = 10
"""Length of a bucket, if the number of buckets is within the tested range."""


# A bool of numpy counts as a number to pydantic, one of Python does not.
_plain = BeforeValidator(lambda x: bool(x) if type(x).__name__ in ("bool", "bool_") else x)


Number = Annotated[float, _plain, Field(strict=True, allow_inf_nan=False)]
"""A finite number of Python or numpy; text and bool are refused."""


Positive = Annotated[Number, Field(gt=0)]


Fraction = Annotated[Number, Field(gt=0, le=1)]


Clock = Annotated[str, StringConstraints(pattern=r"^\d{1,2}:[0-5]\d$")]


class OrderError(ValueError):
    """An invalid order; the message names the field, its value and what is allowed."""


def minutes_of(clock: str) -> int:
    """Minutes since midnight of a time such as 09:30."""
    hours, minutes = clock.split(":")
    return 60 * int(hours) + int(minutes)


class Ticket(BaseModel):
    """An order and its options.

    Parameters
    ----------
    {parameters}

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

    # The text below an option is: meaning [unit]; by default, if that is None.
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    side: Annotated[Literal["buy", "sell"], BeforeValidator(lambda x: x.lower() if isinstance(x, str) else x)]
    """buy or sell"""
    shares: Positive = 0.0
    """size of the order [shares]; by default that of notional"""
    notional: Positive | None = None
    """value of the order at the last close, in place of shares [currency of the bars]; by default that of
    shares"""
    lot: Positive | None = None
    """smallest quantity that is traded; an odd rest goes with the last trade [shares]; by default 1, or none
    for an order in fractions of a share"""
    limit: Positive | None = None
    """price limit: nothing is bought above it or sold below it [currency of the bars]; by default no limit"""
    adv: Positive | None = None
    """average daily volume [shares]; by default mean of the last 21 days of the bars"""
    start: Clock | None = None
    """time of day when execution starts [HH:MM]; by default the open"""
    end: Clock | None = None
    """time of day when execution ends [HH:MM]; by default the close"""
    risk_aversion: Annotated[Number, Field(ge=1e-5, le=1e-2)] | None = None
    """risk aversion lambda [per bps]; by default 0.0005"""
    cost_limit_bps: Positive | None = None
    """limit for the 95 % quantile of cost; the lowest risk aversion that meets it is used [bps]; by default
    no limit, risk_aversion is used"""
    drift_bps: Number = 0.0
    """expected price change over the window, positive if the price rises [bps]"""
    drift_sd_bps: Annotated[Number, Field(ge=0)] = 0.0
    """standard deviation of the unknown part of the drift over the window [bps]"""
    participation_cap: Fraction | None = None
    """largest share of the volume expected in a bucket that may be traded, 0.1 for 10 % [share of expected
    volume]; by default no cap"""
    illiquidity: Positive = 1.0
    """factor of temporary impact, 1 for the published coefficients [multiple]"""
    eta: Positive = 0.142
    """coefficient of temporary impact [daily volatilities]"""
    beta: Fraction = 0.6
    """exponent of temporary impact"""
    gamma: Annotated[Number, Field(ge=0)] = 0.314
    """coefficient of permanent impact [daily volatilities]"""
    shares_outstanding: Positive | None = None
    """shares outstanding, which scale permanent impact [shares]; by default 263 times adv, a large stock"""
    session: tuple[Clock, Clock] = ("09:30", "16:00")
    """open and close of the market, separated by a space; 27:00 is 3:00 of the next day [HH:MM HH:MM]"""

    def __init__(self, side: str | None = None, shares: float | None = None, **options: Any) -> None:
        options |= {"side": side} if shares is None else {"side": side, "shares": shares}
        refuse_unknown(options, type(self).model_fields)
        try:
            super().__init__(**options)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            fault = "must be a time such as 15:30" if "pattern" in first["type"] else first["msg"]
            meaning = ", ".join(filter(None, described_options()[name][:2]))
            raise OrderError(f"{name} = {options[name]!r}: {fault} ({meaning})") from None
        if self.risk_aversion is not None and self.cost_limit_bps is not None:
            raise OrderError("risk_aversion and cost_limit_bps: only one of them may be given")
        if bool(self.shares) == bool(self.notional):
            raise OrderError("shares and notional: one of them must be given, and only one")
        session = f"session = {' to '.join(self.session)}"
        opening, closing = map(minutes_of, self.session)
        if opening >= closing:
            raise OrderError(f"{session}: must close after it opens; 3:00 of the next day is 27:00")
        if closing - opening > 24 * 60:
            raise OrderError(f"{session}: must be at most a day long")
        start, end = self.window
        if not opening <= start < end <= closing:
            given = "start = {}, end = {}".format(*self.hours)
            raise OrderError(f"{given}: must be in order within the session, {' to '.join(self.session)}")

    @property
    def hours(self) -> tuple[str, str]:
        """Start and end of execution, times of day."""
        return self.start or self.session[0], self.end or self.session[1]

    @property
    def window(self) -> tuple[int, int]:
        """Start and end of execution, minutes since midnight."""
        start, end = map(minutes_of, self.hours)
        return start, end

    def sized(self, price: float) -> "Ticket":
        """The order in shares at ``price``, with its lot. Raises OrderError for less than a lot."""
        shares, lot = self.shares, self.lot
        if lot is None and shares == round(shares):
            lot = 1.0
        if self.notional:
            step = lot or 1.0
            shares = step * math.floor(self.notional / price / step)
            if shares == 0:
                raise OrderError(
                    f"notional = {self.notional:g}: must be at least {step * price:g}, a lot of {step:g} at "
                    f"{price:g}; another lot can be given (lot, LOT)"
                )
        return self.model_copy(update={"shares": shares, "notional": None, "lot": lot})

    def room(self, volume: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shares that the cap allows in buckets of an expected ``volume``; none where there is no volume."""
        cap = self.participation_cap
        return np.where(volume > 0, np.inf if cap is None else cap * volume, 0.0)

    @property
    def part(self) -> tuple[float, float]:
        """Start and end of execution as fractions of the session."""
        opening, closing = map(minutes_of, self.session)
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
    """Options from text: numbers are converted, and the two times of a session are separated."""
    return {name: text.split() if name == "session" else _read(text) for name, text in texts.items()}


def _read(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


_DESCRIPTION = re.compile(r"^(.+?)(?: \[(.+)\])?(?:; by default (.+))?$")


def described_options() -> dict[str, tuple[str, str, str]]:
    """Meaning, unit and default, in words, of each option."""
    described = {}
    for name, field in Ticket.model_fields.items():
        text = " ".join(str(field.description).split())
        [(meaning, unit, otherwise)] = _DESCRIPTION.findall(text)
        if field.is_required():
            otherwise = "required"
        elif field.default is not None and not otherwise:
            otherwise = " ".join(field.default) if name == "session" else f"{field.default:g}"
        described[name] = (meaning, unit, otherwise)
    return described


_PARAMETERS = "\n    ".join(
    f"{name} : {unit or 'no unit'}, {default}\n        {meaning}"
    for name, (meaning, unit, default) in described_options().items()
)
Ticket.__doc__ = str(Ticket.__doc__).format(parameters=_PARAMETERS)
