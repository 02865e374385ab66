"""How vendors write bars: names of columns, units, stamps and time zones, recognised by content.

Files are read as text by pandas. The table of vendors is ``vendors.toml``, beside this file.
"""

import io
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import ArrowException

PRICES = ("open", "high", "low", "close")


COLUMNS = (*PRICES, "volume")


TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


NAMES: dict[str, list[str]] = TABLE["names"]


GENERIC_TIMES = ("time", "date", "datetime", "date_time", "timestamp")


CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AaPp][Mm])?|\d{1,6}"


ASK = (
    'say which column is what (columns, COLUMNS), as "time=Day, volume=Shares", or, without a header, '
    '"time, open, high, low, close, volume"'
)


class BarsError(ValueError):
    """Bars that break a rule; the message names source, column, row and what is allowed."""


@dataclass(frozen=True)
class Vendor:
    """What the files of a vendor imply; the fields are explained in ``vendors.toml``."""

    name: str = ""
    marks: tuple[str, ...] = ()
    columns: str = ""
    pattern: str = ".*"
    bars: str | None = None
    dates: str | None = None
    lot: float = 1.0
    price_scale: float = 1.0


VENDORS, LAYOUTS = ([Vendor(**entry) for entry in TABLE[kind]] for kind in ("vendor", "layout"))


def _read_table(path: Path) -> tuple[pd.DataFrame, bool, str]:
    """The table of a file, without conversion, whether it has a header, and the separator of its columns.

    A text file gives text, indexed by the lines of the file; Parquet has no separator.
    """
    if not path.is_file():
        raise BarsError(f"{path}: no such file; give a .csv, .txt or .parquet file of bars")
    if (suffix := path.suffix.lower()) not in (".csv", ".txt", ".tsv", ".parquet", ".pq"):
        raise BarsError(f"{path}: unknown extension '{suffix}'; allowed are .csv, .txt, .tsv and .parquet")
    try:
        if suffix in (".parquet", ".pq"):
            return pd.read_parquet(path), True, ""
        content = path.read_bytes()
        try:
            text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        except UnicodeDecodeError:
            text = content.decode("cp1252")
        # Titles may stand above the table, which begins with the first line of five columns or more.
        lines = text.splitlines()[:20]
        begins = ((k, mark) for k, line in enumerate(lines) for mark in "\t;|," if line.count(mark) > 3)
        skip, mark = next(begins, (0, ","))
        # Blank lines are dropped afterwards, so that line numbers are those of the file.
        options: dict[str, Any] = {"header": None, "dtype": str, "keep_default_na": False}
        raw = pd.read_csv(io.StringIO(text), sep=mark, skiprows=skip, skip_blank_lines=False, **options)
    except pd.errors.EmptyDataError:
        raise BarsError(f"{path}: is empty; a header and at least one row are needed") from None
    except pd.errors.ParserError as error:
        raise BarsError(f"{path}: has rows with more fields than the header: {error}") from None
    except (ArrowException, ValueError, OSError, LookupError, TypeError) as error:
        raise BarsError(f"{path}: cannot be read as {suffix[1:]}: {error}") from error
    raw = raw.fillna("").set_axis(pd.RangeIndex(skip + 1, len(raw) + skip + 1), axis=0)
    raw = raw[(raw != "").any(axis=1)]
    if raw.iloc[0].str.fullmatch(r"[\d.,:/ TZ+-]*\d[\d.,:/ TZ+-]*").mean() > 0.5:
        return raw, False, mark
    names, raw = raw.iloc[0].str.strip().tolist(), raw.iloc[1:]
    # yfinance writes the symbol and the name of the index below the names of the columns.
    below = raw.index[:2][raw.iloc[:2, 0].str.lower().isin(["ticker", "date", "datetime"])]
    return raw.drop(below).set_axis(["date", *names[1:]] if len(below) else names, axis=1), True, mark


def read_columns(
    source: str | Path | pd.DataFrame, columns: str | None, label: str
) -> tuple[pd.DataFrame, str, Vendor, list[str]]:
    """The columns time, open, high, low, close, volume and, if there is one, turnover of a file or a frame.

    ``columns`` says which column is what, as in :func:`flowoe_lib.data.bars.load_bars`. A date and a time of
    day in two columns are joined. The index holds the lines of a text file, or rows from 1. Also returned are
    the separator of a text file, the vendor, and notes.
    """
    raw, header, mark = (source, True, "") if isinstance(source, pd.DataFrame) else _read_table(Path(source))
    vendor, words = Vendor(), [word.strip() for word in (columns or "").split(",") if word.strip()]
    given = {ours.strip(): theirs.strip() for ours, mark, theirs in (w.partition("=") for w in words) if mark}
    if words and not given:
        if len(words) != raw.shape[1]:
            raise BarsError(f"{label}: columns = {columns!r}: must name all {raw.shape[1]} columns; {ASK}")
        raw = raw.set_axis(words, axis=1)
    elif not header:
        begin = " ".join(raw.iloc[0, :2])
        layouts = [v for v in LAYOUTS if len(v.columns.split()) == raw.shape[1]]
        vendor = next((v for v in layouts if re.fullmatch(v.pattern, begin)), vendor)
        if not vendor.columns:
            raise BarsError(f"{label}: has no header and {raw.shape[1]} columns, as no known vendor's; {ASK}")
        raw = raw.set_axis(vendor.columns.split(), axis=1)
    raw = _flat(raw, label)
    simple = [_simple(name) for name in raw.columns]
    vendor = next((v for v in VENDORS if {*v.marks} <= {*simple}), vendor)
    table: dict[str, pd.Series] = {}
    notes: list[str] = []
    for column in ("time", *COLUMNS, "turnover"):
        theirs, _, factor = given.pop(column, "").partition("*")
        hits: list[int] = []
        for word in [theirs.strip()] if theirs else NAMES[column]:
            hits = hits or [k for k, name in enumerate(raw.columns) if word in (simple[k], str(name).strip())]
        if len(hits) > 1:
            found = ", ".join(str(raw.columns[k]) for k in hits)
            raise BarsError(f"{label}: column '{column}' is given {len(hits)} times, as {found}; {ASK}")
        for k in hits:
            table[column] = raw.iloc[:, k]
            notes += [f"{raw.columns[k]} is {column}"] * (simple[k] not in (column, *GENERIC_TIMES))
            if column == "time" and not theirs:
                table["time"] = _joined(raw, simple, label)
            if factor:
                table[column] = read_numbers(table[column], False) * float(factor)
    if "volume" not in table and {"up", "down"} <= {*simple}:
        up, down = (read_numbers(raw.iloc[:, simple.index(part)], False) for part in ("up", "down"))
        table["volume"] = up + down
    if missing := [*given] or [c for c in ("time", *COLUMNS) if c not in table]:
        found = ", ".join(map(str, raw.columns)) or "none"
        raise BarsError(f"{label}: missing column {', '.join(missing)}; found {found}; {ASK}")
    named = pd.DataFrame(table)
    return named if mark else named.set_axis(pd.RangeIndex(1, len(named) + 1)), mark, vendor, notes


def _simple(name: object) -> str:
    """A column's name in lower case, without brackets, number and unit: '2a. high (USD)' is 'high'."""
    return re.sub(r"^\d+[a-z]?\. | \(.*\)$", "", str(name).strip().lower().strip("<>"))


def _flat(raw: pd.DataFrame, label: str) -> pd.DataFrame:
    """Move an index of times to the columns, and take the names of the columns from one level."""
    if isinstance(raw.columns, pd.MultiIndex):
        levels = [raw.columns.get_level_values(k) for k in range(raw.columns.nlevels)]
        raw = raw.set_axis(max(levels, key=lambda level: len({*map(_simple, level)} & {*PRICES})), axis=1)
    named = any(_simple(name) in NAMES["time"] for name in raw.index.names)
    if not named and isinstance(raw.index, pd.DatetimeIndex | pd.PeriodIndex):
        raw, named = raw.rename_axis("time"), True
    if doubled := [name for name in raw.index.names if name in raw.columns]:
        raise BarsError(f"{label}: column '{doubled[0]}' is given 2 times, as a column and as the index")
    return raw.reset_index() if named else raw


def _joined(raw: pd.DataFrame, simple: list[str], label: str) -> pd.Series:
    """The column of times; a date and a time of day in two columns are joined."""
    places = {name: k for k, name in enumerate(simple)}
    known = [places[name] for name in NAMES["time"] if name in places]
    text = {k: raw.iloc[:, k].astype(str) for k in known}
    clocks = [k for k in known if len(known) > 1 and text[k].str.fullmatch(CLOCK).mean() > 0.5]
    days = [k for k in known if k not in clocks[:1]]
    if len(generic := [str(raw.columns[k]) for k in days if simple[k] in GENERIC_TIMES]) > 1:
        found = ", ".join(generic)
        raise BarsError(f"{label}: column 'time' is given {len(generic)} times, as {found}; {ASK}")
    if not clocks:
        return raw.iloc[:, days[0]]
    clock = text[clocks[0]]
    padded = clock.str.zfill(6 if clock.str.len().max() > 4 else 4)
    return text[days[0]] + " " + clock.where(~clock.str.isdigit(), padded)


def decimal_comma(raw: pd.DataFrame, mark: str) -> bool:
    """Whether prices are written with a decimal comma, as 1.127,35; ``mark`` separates the columns."""
    text = raw[[*PRICES]].select_dtypes(exclude="number").melt()["value"].astype(str)
    comma = text[text.str.contains(",")]
    clear = comma.str.fullmatch(r"\D*(?:[\d.]*,(?:\d{1,2}|\d{4,})|0,\d+|[\d.]+\.\d{3},\d+)")
    plain = mark == ";" and not comma.str.contains(r",.*\.").any()
    return len(comma) > 0 and bool(plain or clear.mean() > 0.5)


def read_numbers(column: pd.Series, comma: bool) -> pd.Series:
    """Numbers from text with currency signs, thousands separators, a decimal comma, or K, M, B.

    What is no number becomes NaN.
    """
    if pd.api.types.is_numeric_dtype(column) and column.dtype != "float32":
        return column.astype("float64")
    # The text of a short float is the decimal number that was rounded to it.
    plain = pd.to_numeric(column.astype(str), errors="coerce").astype("float64")
    if not comma and plain.notna().all():
        return plain
    text = column.astype(str).str.replace(r"[\s$€£¥'’]", "", regex=True)
    if comma:
        text = text.str.replace(".", "").str.replace(",", ".")
    grouped = text.str.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d*)?[KMBkmb]?")
    parts = text.where(~grouped, text.str.replace(",", "")).str.extract(r"^(.*?)([KMBkmb]?)$")
    factor = parts[1].str.upper().map({"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9})
    return (pd.to_numeric(parts[0], errors="coerce") * factor).astype("float64")
