"""The public data sets of the project, loaded and checked like a user's own bars.

The S&P 500 and VIX histories are part of the ``arch`` package. Intraday samples are read from pinned
wheels of public packages, which are downloaded at first use and not stored with the code.
"""

import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import arch.data.sp500
import arch.data.vix
import pandas as pd
import pooch

from flowoe_lib.data.bars import DEFAULT_TIMEZONE, Bars, load_bars


@dataclass(frozen=True)
class Wheel:
    """One file of the Python Package Index, pinned by its hash."""

    package: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """File name."""
        return f"{self.package}-{self.version}-py3-none-any.whl"


EMINI = Wheel("mlfinpy", "0.1.2", "2e0237e0a5f693bb1c7e9758e52ec03033a4d24ecee1162899d8241d7340e3f2")


EURUSD_HOURS = Wheel(
    "gym_anytrading", "2.0.0", "29e88b9d38272ea338c8cfcebc6a0f0302c7a8c02048331ad6a4d22cdd825e54"
)


BITSTAMP = Wheel("ob_analytics", "0.1.0", "0326a93aaee4ea08356d8dea59868d68592623a2434bbe4d9be379fa855c9c62")


class FetchError(RuntimeError):
    """A data file that cannot be downloaded; the message names the file and where to put it by hand."""


def sp500_daily() -> Bars:
    """Daily S&P 500 index bars, 1999-2018, in points and shares, from the ``arch`` package.

    Until 2006, and in part until 2013, the recorded open is the previous close: the index was
    published before its members had traded, so those days' ranges include the night.
    """
    return load_bars(arch.data.sp500.load(), name="arch.data.sp500", min_days=5000)


def vix_daily() -> pd.Series:
    """Daily close of the VIX, annualised percent, 2014-2018, days without a quote left out."""
    vix = arch.data.vix.load()["vix"].dropna()
    times = pd.DatetimeIndex(vix.index, name="time").tz_localize(DEFAULT_TIMEZONE)
    return vix.set_axis(times.as_unit("us"))


def fetch(wheel: Wheel, cache: Path, pip_options: tuple[str, ...] = ()) -> Path:
    """Path of ``wheel``, downloaded into ``cache`` unless the pinned file is there.

    Raises FetchError when it can neither be found nor downloaded, or what is downloaded is not that file.
    """

    def by_pip(requirement: str, file: str, _: pooch.Pooch | None) -> None:
        # Only pip knows the package index that this machine is set up for.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            flags = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--quiet"]
            flags += ["--disable-pip-version-check", "--retries=2", "--timeout=30", *pip_options]
            pip = [sys.executable, "-m", "pip", "download", *flags, requirement, "-d", folder]
            run = subprocess.run(pip, capture_output=True, text=True)
            if run.returncode != 0:
                raise FetchError(
                    f"pip could not download {wheel.file}. Get that file (sha256 {wheel.sha256}) from the "
                    f"Python Package Index on a connected machine and put it at {cache / wheel.file}. pip "
                    f"said:\n{run.stderr.strip()}"
                )
            Path(folder, wheel.file).replace(file)

    pooch.get_logger().setLevel("WARNING")
    requirement, pin = f"{wheel.package}=={wheel.version}", f"sha256:{wheel.sha256}"
    try:
        return Path(pooch.retrieve(requirement, pin, wheel.file, cache, downloader=by_pip))
    except ValueError as error:
        raise FetchError(f"{wheel.file} is not the pinned file: {error}") from error


def _csv(wheel: Wheel, cache: Path, member: str) -> pd.DataFrame:
    with zipfile.ZipFile(fetch(wheel, cache)) as archive, archive.open(member) as file:
        return pd.read_csv(file, compression="gzip" if member.endswith(".gz") else None)


def emini_trades(cache: Path) -> pd.DataFrame:
    """500,000 E-mini S&P 500 trades, 1-3 September 2013: price (points), volume (contracts), by Chicago time.

    Three sessions: a Sunday night, Labor Day (2 September, closed at 10:30) and the Tuesday until
    13:51. Raises FetchError as :func:`fetch`.
    """
    raw = _csv(EMINI, cache, "mlfinpy/dataset/data/tick_data.csv")
    times = pd.DatetimeIndex(pd.to_datetime(raw["DateTime"], format="ISO8601"), name="time")
    trades = raw[["Price", "Volume"]].set_axis(["price", "volume"], axis=1)
    return trades.set_axis(times.tz_localize("America/Chicago"), axis=0)


def emini_bars(cache: Path) -> Bars:
    """1,000 E-mini S&P 500 bars of $70m each, January 2015, volume in contracts, by Chicago time.

    A bar's time is the time of its last trade. The file does not state this; we infer it because only then do
    the bars jump when news arrived (payrolls of 9 January at 7:30, the Swiss franc on 15 January at 3:30).
    Raises FetchError as :func:`fetch`.
    """
    raw = _csv(EMINI, cache, "mlfinpy/dataset/data/dollar_bar_sample.csv")
    raw = raw.rename(columns={"cum_vol": "volume"})
    return load_bars(raw, name="E-mini dollar bars", timezone="America/Chicago", dates="UTC", min_days=20)


def eurusd_hours(cache: Path) -> Bars:
    """6,225 hourly bars of EURUSD, ask side, in 2017, by New York time, with the volume of one broker.

    The file stamps a bar at its start and names no time zone. Its weeks open at 22:00 in winter and at
    21:00 in summer, which is Sunday 17:00 in New York if times are UTC.
    Raises FetchError as :func:`fetch`.
    """
    raw = _csv(EURUSD_HOURS, cache, "gym_anytrading/datasets/data/FOREX_EURUSD_1H_ASK.csv")
    name = "EURUSD hourly bars"
    return load_bars(raw, name=name, dates="dmy UTC", bars="start", minutes=60, min_days=300)


def bitstamp_book(cache: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Order events and trades of half an hour of BTC/USD at Bitstamp, 2 May 2026, 02:36 to 03:06 UTC.

    Events: id, time (s since the first), price (USD), volume (BTC that remain), action (created, changed or
    deleted) and direction (bid or ask). The record begins with a snapshot of the book and deletes at its end
    what still rests. Trades: time, price, amount (BTC), side of the incoming order, and the ids of both
    orders. Times are those of the exchange, because events arrived out of order. Only data is read from the
    wheel; its code is under the GPL. Raises FetchError as :func:`fetch`.
    """
    folder = "ob_analytics/_sample_data"
    events, trades = (_csv(BITSTAMP, cache, f"{folder}/{name}") for name in ("orders.csv.gz", "trades.csv"))
    first = events["exchange_timestamp"].min()
    for table in (events, trades):
        table["time"] = (table["exchange_timestamp"] - first) / 1000
    return events, trades
