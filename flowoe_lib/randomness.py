"""Named random streams: every draw of the project comes from a seed and the name of its purpose."""

import zlib

import numpy as np
import torch

__all__ = ["generator"]


def generator(seed: int, *stream: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` for one named stream of ``seed``, independent of every other name.

    ``generator(7, "test", "calm/normal", 3)`` and ``generator(7, "train")`` share no state: the name
    spawns a child of numpy's SeedSequence, whose hash separates the streams.
    """
    key = tuple(zlib.crc32(str(part).encode()) for part in stream)
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed((int(state[0]) << 31) ^ int(state[1]))
