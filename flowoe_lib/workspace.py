"""Where a run keeps its things: stored results, figures and downloads of one profile."""

import os
from dataclasses import dataclass
from pathlib import Path

from flowoe_lib.artifacts import Store

__all__ = ["PROFILES", "Workspace"]

PROFILES = ("full", "quick")
"""``full`` makes the committed results, ``quick`` the same line at small scale."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one profile in one checkout; quick results never mix with full ones."""

    root: Path
    profile: str
    device: str = "cpu"
    """Where policies are refined."""

    @classmethod
    def open(cls, profile: str, device: str = "cpu") -> "Workspace":
        """The workspace of the checkout around the working directory, its folders made.

        Raises ValueError for an unknown profile, FileNotFoundError outside a checkout.
        """
        if profile not in PROFILES:
            raise ValueError(f"profile {profile!r}: must be one of {', '.join(PROFILES)}")
        here = Path.cwd()
        marks = ("pyproject.toml", "flowoe_lib", "notebooks")
        root = next((p for p in (here, *here.parents) if all((p / m).exists() for m in marks)), None)
        if root is None:
            raise FileNotFoundError(
                f"no folder with {', '.join(marks)} at {here} or above: run inside the checkout"
            )
        workspace = cls(root, profile, device)
        for folder in (workspace.store.root, workspace.figures, workspace.cache, workspace.build):
            folder.mkdir(parents=True, exist_ok=True)
        return workspace

    @property
    def store(self) -> Store:
        """Results that later notebooks read."""
        return Store(self.root / "artifacts" / self.profile)

    @property
    def figures(self) -> Path:
        """Figures and tables; FLOWOE_FIGURES diverts them, so that a test run leaves the published ones."""
        default = self.root / "figures" if self.profile == "full" else self.build / "figures"
        return Path(os.environ.get("FLOWOE_FIGURES") or default)

    @property
    def cache(self) -> Path:
        """Downloaded data, checked against a pinned hash by whoever reads it."""
        return self.root / ".cache"

    @property
    def build(self) -> Path:
        """Executed notebooks and the driver's records."""
        return self.root / "build" / self.profile
