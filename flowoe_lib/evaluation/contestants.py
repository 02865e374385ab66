"""The seed of the test days, computed from all policies that are compared.

Test days are drawn from a digest of every contestant. A change of a weight, of a setting or of the code of
one contestant changes the days, so no contestant can be selected by its performance on them. Selection uses
validation days, which have their own seed and random stream.

What a planner computes differs in the last bits between processor types. A planner is therefore passed as the
function that makes it, and a learner by its weights, so that the digest is the same on every machine.
"""

import json
from collections.abc import Mapping
from typing import Any

from flowoe_lib.recipes import LOADED, check_unchanged, content_of, sha256, with_imports


def contestants_digest(contestants: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Digest of the content of all contestants, independent of their order.

    The content is the weights of a network, the fields of a dataclass such as a flow policy, and the source
    of the module that defines a function or class, with all that it imports. The device of a tensor does not
    matter.

    Parameters
    ----------
    contestants : mapping of str to value
        All policies that are scored, opponents included, or the functions that make them; any argument of
        :func:`flowoe_lib.recipes.recipe`.
    settings : mapping of str to value
        Everything else that determines their trades, such as conditions and the number of buckets.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.

    Raises
    ------
    TypeError
        For a value without canonical content, such as a lambda; the message names it.
    ValueError
        Without contestants, or for a number that is not finite.
    RuntimeError
        If a module that defines a contestant changed on disk since it was imported.
    """
    if not contestants:
        raise ValueError("contestants: must be at least one")
    modules: set[str] = set()
    content = []
    for kind, named in (("contestant", contestants), ("setting", settings)):
        for name in sorted(named):
            try:
                value = json.dumps(content_of(named[name], modules), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{kind} {name!r}: {error}") from None
            content.append([kind, name, value])
    imported = sorted(with_imports(modules) & LOADED.keys())
    check_unchanged(imported)
    sources = [[module, LOADED[module].sha256] for module in imported]
    return sha256(json.dumps([content, sources]).encode())


def seed_of_test_days(digest: str) -> int:
    """Seed of the test days: the first 63 bits of a digest from :func:`contestants_digest`."""
    return int(digest[:16], 16) >> 1
