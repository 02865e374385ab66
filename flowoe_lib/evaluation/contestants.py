"""The seed of the test days, made from everything that takes part in the test.

Test days are drawn from a digest of every contestant, so whoever changes a weight, a setting or the code of
one gets other days, and nobody can have chosen a contestant by how it does on them. Choices are made on
validation days, whose seed and random stream are their own.
"""

import json
from collections.abc import Mapping
from typing import Any

from flowoe_lib.recipes import LOADED, check_unchanged, content_of, sha256

__all__ = ["contestants_digest", "seed_of_test_days"]


def contestants_digest(contestants: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Digest of all contestants by content, the same in whatever order they are named.

    Of a network count its weights, of a policy with fields, such as a schedule or a flow policy, its fields,
    and of these and of functions also the source of the module that defines them. Where an object lies in
    memory and on which device tensors are does not count.

    Parameters
    ----------
    contestants : mapping of str to policy
        Everyone who is scored, opponents included, as :func:`flowoe_lib.recipes.recipe` takes arguments.
    settings : mapping of str to value
        What else decides how they act, such as the conditions, the number of buckets and the solver steps.

    Returns
    -------
    str
        SHA-256, 64 hexadecimal digits.

    Raises
    ------
    TypeError
        For something without a canonical content, such as a lambda; the message names it.
    ValueError
        Without a contestant, and for a number that is not finite.
    RuntimeError
        Where a module that defines a contestant changed on disk since it was imported.
    """
    if not contestants:
        raise ValueError("contestants: must be at least one")
    modules: set[str] = set()
    named = {("contestant", k): v for k, v in contestants.items()}
    named |= {("setting", k): v for k, v in settings.items()}
    content = []
    for (kind, name), value in sorted(named.items(), key=lambda item: item[0]):
        try:
            content.append([kind, name, json.dumps(content_of(value, modules), allow_nan=False)])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{kind} {name!r}: {error}") from None
    check_unchanged(modules)
    sources = [[module, LOADED[module].sha256] for module in sorted(modules)]
    return sha256(json.dumps([content, sources]).encode())


def seed_of_test_days(digest: str) -> int:
    """Seed of the test days, the first 63 bits of a digest by :func:`contestants_digest`."""
    return int(digest[:16], 16) >> 1
