"""The card of the pretrained policy, which describes what it was trained for; read without torch.

Weights that do not match their card are refused, because a policy of unknown origin cannot be recognised
otherwise.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowoe_lib.recipes import sha256

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the pretrained policy."""


CARD, WEIGHTS = "universal.json", "universal.safetensors"


ENTRIES = ("sha256", "shapes", "observes", "range", "n_buckets", "calibration", "training", "scores")
"""What a card must have."""


class TrainedPolicyError(ValueError):
    """A policy that is missing or does not match its card; the message names the file and the fault."""


def sealed(card: Mapping[str, Any]) -> bytes:
    """The file of ``card``: its entries, and as the last one the checksum over all others."""
    entries = {name: value for name, value in card.items() if name != "checksum"}
    checksum = sha256(json.dumps(entries, indent=1, allow_nan=False).encode())
    return f"{json.dumps(entries | {'checksum': checksum}, indent=1)}\n".encode()


def read_card(folder: Path | None = None) -> tuple[dict[str, Any], bytes]:
    """The card in ``folder``, and the content of the weights that it was written for.

    Raises TrainedPolicyError if a file is missing, the card is unreadable, incomplete or not byte for byte
    the one that was written, or the weights are others. By default ``folder`` is that of the library.
    """
    folder = folder or SHIPPED
    place = folder / CARD
    try:
        written, content = ((folder / name).read_bytes() for name in (CARD, WEIGHTS))
        card = json.loads(written)
        intact = isinstance(card, dict) and written == sealed(card)
    except FileNotFoundError as error:
        raise TrainedPolicyError(f"{error.filename}: no such file; `make notebooks` makes it") from None
    except OSError as error:
        raise TrainedPolicyError(f"{error.filename}: cannot be read: {error.strerror}") from None
    except (RecursionError, ValueError) as error:
        raise TrainedPolicyError(f"{place}: is not JSON: {error}") from None
    missing = [name for name in ENTRIES if not isinstance(card, dict) or name not in card]
    if missing:
        raise TrainedPolicyError(f"{place}: lacks {', '.join(missing)}")
    if not intact:
        raise TrainedPolicyError(f"{place}: does not match its checksum")
    if sha256(content) != card["sha256"]:
        raise TrainedPolicyError(f"{folder / WEIGHTS}: is not the file that {CARD} was written for")
    return card, content
