"""The store hands on what was made, makes it again when it must, and survives being interrupted."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flowoe_lib import store as artifacts
from flowoe_lib.market.model import Impact, scalar
from flowoe_lib.store import MissingArtifact, Store, atomic_write, digest, sources_digest

TABLE = pd.DataFrame({"policy": ["TWAP", "AC"], "cost_bps": [10.4, 10.1]}, index=pd.Index([3, 5], name="row"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts" / "full")


class Counted:
    """A maker that knows how often it was asked."""

    def __init__(self, value: Any) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.value


def refuse() -> Any:
    raise AssertionError("made again")


def test_round_trip(store: Store) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"row": whole[1], "column": whole[:, 1], "count": torch.tensor(3)}
    store.tensors("tensors", {}, lambda: tensors)
    store.table("table", {}, lambda: TABLE)
    store.json("value", {}, lambda: {"seed": 3, "names": ["a", "b"]})

    def same(got: dict[str, Tensor]) -> None:
        torch.testing.assert_close(got, tensors, rtol=0, atol=0)

    same(store.tensors("tensors", {}, refuse))
    same(store.read_tensors("tensors"))
    pd.testing.assert_frame_equal(store.table("table", {}, refuse), TABLE)
    pd.testing.assert_frame_equal(store.read_table("table"), TABLE)
    assert store.json("value", {}, refuse) == store.read_json("value") == {"seed": 3, "names": ["a", "b"]}


def test_first_and_later_runs_return_the_same(store: Store) -> None:
    assert store.json("pair", {}, lambda: (1, 2)) == store.json("pair", {}, refuse) == [1, 2]


def test_changed_recipe_makes_again(store: Store) -> None:
    make = Counted({"x": 1})
    for seed in (1, 1, 2, 2, 1):
        store.json("value", {"seed": seed}, make)
    assert make.calls == 3


def test_changed_kind_makes_again(store: Store) -> None:
    store.json("value", {}, lambda: 1)
    store.table("value", {}, lambda: TABLE)
    with pytest.raises(MissingArtifact, match=r"'value' is stored as value\.parquet"):
        store.read_json("value")


@pytest.mark.parametrize("file", ["table.parquet", "table.card.json"])
@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_damaged_entry_is_made_again(store: Store, file: str, damage: str) -> None:
    store.table("table", {}, lambda: TABLE)
    path = store.root / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    with pytest.raises(MissingArtifact, match="artifact 'table' is"):
        store.read_table("table")
    make = Counted(TABLE)
    store.table("table", {}, make)
    assert make.calls == 1
    pd.testing.assert_frame_equal(store.read_table("table"), TABLE)


def test_crash_while_making_keeps_the_old_entry(store: Store) -> None:
    store.json("value", {"seed": 1}, lambda: "old")
    with pytest.raises(AssertionError, match="made again"):
        store.json("value", {"seed": 2}, refuse)
    assert store.read_json("value") == "old"
    assert sorted(p.name for p in store.root.iterdir()) == ["value.card.json", "value.json"]


@pytest.mark.parametrize("before", [None, "old"])
def test_crash_between_content_and_card_leaves_no_entry(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is not None:
        store.json("value", {"seed": 1}, lambda: before)

    def write(path: Path, content: bytes) -> None:
        if path.name.endswith(".card.json"):
            raise KeyboardInterrupt
        atomic_write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "atomic_write", write)
        with pytest.raises(KeyboardInterrupt):
            store.json("value", {"seed": 2}, lambda: "new")
    with pytest.raises(MissingArtifact):
        store.read_json("value")
    assert store.json("value", {"seed": 2}, lambda: "new") == store.read_json("value") == "new"


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "figure.svg"
    atomic_write(path, b"old")

    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match="No space"):
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["figure.svg"]


def _make_large(root: Path) -> list[float]:
    values: list[float] = Store(root).json("shared", {}, lambda: np.arange(200_000.0).tolist())
    return values


def test_processes_may_write_one_entry_at_once(store: Store) -> None:
    got = joblib.Parallel(n_jobs=2)(joblib.delayed(_make_large)(store.root) for _ in range(8))
    assert all(values == got[0] for values in got)
    assert store.read_json("shared") == got[0]
    assert sorted(p.name for p in store.root.iterdir()) == ["shared.card.json", "shared.json"]


def test_missing_entry_says_how_to_make_it(store: Store) -> None:
    message = r"'conditions' is missing in .*full: an earlier notebook makes it.*make reproduce PROFILE=full"
    for read in (store.read_json, store.read_table, store.read_tensors, store.fingerprint):
        with pytest.raises(MissingArtifact, match=message):
            read("conditions")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.card", "two words"])
def test_bad_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="must be letters, digits and underscores"):
        store.json(name, {}, refuse)


def test_fingerprint_follows_the_content(store: Store) -> None:
    store.json("value", {"seed": 1}, lambda: 1)
    first = store.fingerprint("value")
    store.json("value", {"seed": 2}, lambda: 1)
    assert store.fingerprint("value") == first
    store.json("value", {"seed": 3}, lambda: 2)
    assert store.fingerprint("value") != first


def test_digest_sees_values_not_spelling() -> None:
    assert digest({"a": 1, "b": [1.5, 2]}) == digest({"b": (1.5, np.int64(2)), "a": np.array(1)})
    assert digest({"impact": Impact()}) == digest({"impact": Impact()})
    assert digest({"impact": Impact()}) != digest({"impact": Impact(eta=scalar(0.15))})


def test_digest_covers_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = digest({})
    monkeypatch.setattr(artifacts, "SOURCES", "another")
    assert digest({}) != before

    def sources(*files: tuple[str, str]) -> str:
        for name, text in files:
            atomic_write(tmp_path / name, text.encode())
        return sources_digest(tmp_path)

    steps = [("a.py", "x = 1"), ("a.py", "x = 2"), ("experts/b.py", ""), ("experts/b.py", "y = 1")]
    assert len({sources(step) for step in steps}) == 4
    assert sources(("notes.txt", "not code")) == sources(steps[-1])


@pytest.mark.parametrize(
    ("value", "error"), [(object(), TypeError), (float("nan"), ValueError), ({1}, TypeError)]
)
def test_digest_refuses_what_it_cannot_spell(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        digest({"value": value})


def test_card_tells_what_made_the_entry(store: Store) -> None:
    store.json("value", {"seed": 1, "impact": Impact()}, lambda: 1)
    card = json.loads((store.root / "value.card.json").read_text())
    assert card["recipe"]["seed"] == 1
    assert card["recipe"]["impact"]["type"] == "Impact"
