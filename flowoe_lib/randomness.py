"""Named random streams: every draw of the project comes from a seed and the name of its purpose."""

import zlib

import numpy as np
import torch


def generator(seed: int, *stream: str | int, device: str = "cpu") -> torch.Generator:
    """Make a torch generator for one named random stream of a seed.

    Streams of different names are independent: the name spawns a child of numpy's SeedSequence.

    Parameters
    ----------
    seed : int
        Seed shared by all streams of a run.
    *stream : str or int
        Name of the stream in any number of parts, such as ``"test", "calm/normal", 3``.
    device : str
        Device on which the generator draws.

    Returns
    -------
    torch.Generator
        A new generator at the start of its stream.

    References
    ----------
    O'Neill (2014), PCG, for the seed hashing on which numpy's SeedSequence is based.

    Examples
    --------
    >>> import flowoe_lib as fo
    >>> first, again, other = (fo.generator(7, name) for name in ("days", "days", "noise"))
    >>> first.initial_seed() == again.initial_seed(), first.initial_seed() == other.initial_seed()
    (True, False)
    """
    key = tuple(zlib.crc32(str(part).encode()) for part in stream)
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(state[0]) << 31) ^ int(state[1]))
