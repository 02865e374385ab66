"""The store returns current entries, computes the others again, and survives interruptions."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import loky
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from flowoe_lib import recipes
from flowoe_lib import store as artifacts
from flowoe_lib.store import LARGEST, MissingArtifact, Store, atomic_write

TABLE = pd.DataFrame({"policy": ["TWAP", "AC"], "cost_bps": [10.4, 10.1]}, index=pd.Index([3, 5], name="row"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts" / "full")


def as_task(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` as if defined in a module of the library that imports no other."""
    function.__module__, function.__qualname__ = "flowoe_lib.randomness", "task"
    return function


class Counted:
    """A task that gives ``value``, and how often it was computed."""

    def __init__(self, value: Any) -> None:
        self.calls = 0

        def task(seed: int = 0) -> Any:
            self.calls += 1
            return value

        self.task = as_task(task)


@as_task
def refuse(seed: int = 0) -> Any:
    raise AssertionError("made again")


class Results(NamedTuple):
    table: pd.DataFrame
    weights: dict[str, Tensor]
    seconds: float


def test_round_trip(store: Store) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"row": whole[1], "column": whole[:, 1], "count": torch.tensor(3)}
    store.made("tensors", Counted(tensors).task)
    store.made("table", Counted(TABLE).task)
    store.made("value", Counted({"seed": 3, "names": ["a", "b"]}).task)

    def same(got: dict[str, Tensor]) -> None:
        torch.testing.assert_close(got, tensors, rtol=0, atol=0)

    same(store.made("tensors", refuse))
    same(store.read_tensors("tensors"))
    pd.testing.assert_frame_equal(store.made("table", refuse), TABLE)
    pd.testing.assert_frame_equal(store.read_table("table"), TABLE)
    assert store.made("value", refuse) == store.read_json("value") == {"seed": 3, "names": ["a", "b"]}


def test_first_and_later_runs_return_the_same(store: Store) -> None:
    assert store.made("pair", Counted((1, 2)).task) == store.made("pair", refuse) == [1, 2]


@pytest.mark.parametrize("damaged", [None, "table", "weights", "seconds"])
def test_a_named_tuple_is_stored_by_field(store: Store, damaged: str | None) -> None:
    calls = []

    def task(seed: int) -> Results:
        calls.append(seed)
        return Results(TABLE, {"w": torch.ones(2)}, 1.5)

    first = store.made("run", as_task(task), seed=1)
    if damaged:
        (store.root / f"run_{damaged}.card.json").write_text("{}")
    again = store.made("run", as_task(task), 1)
    assert len(calls) == (2 if damaged else 1)
    for results in (first, again):
        assert isinstance(results, Results)
        pd.testing.assert_frame_equal(results.table, TABLE)
        assert (results.weights["w"].tolist(), results.seconds) == ([1, 1], 1.5)
    assert store.read_json("run_seconds") == 1.5


def test_another_argument_makes_again(store: Store) -> None:
    made = Counted({"x": 1})
    for seed in (1, 1, 2, 2, 1):
        store.made("value", made.task, seed)
    assert made.calls == 3


def test_changed_kind_makes_again(store: Store) -> None:
    store.made("value", Counted(1).task)
    store.made("value", Counted(TABLE).task, 1)
    with pytest.raises(MissingArtifact, match=r"'value' is stored as value\.parquet"):
        store.read_json("value")


def test_another_module_on_disk_makes_again_and_unrelated_ones_do_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Counted(1)
    store.made("value", made.task)
    for module, calls in (("flowoe_lib.plotting", 1), ("flowoe_lib.randomness", 2)):
        edited = recipes.LOADED[module]._replace(sha256="another")
        monkeypatch.setitem(recipes.LOADED, module, edited)
        store.made("value", made.task)
        assert made.calls == calls


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_library_that_changed_since_its_import_stores_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:
    source = tmp_path / "randomness.py"
    source.write_text("x = 1")
    monkeypatch.setitem(recipes.LOADED, "flowoe_lib.randomness", recipes._source(source))

    def edit() -> None:
        # Edited, and changed back: what ran between is unknown.
        source.write_text("x = 2")
        source.write_text("x = 1")
        os.utime(source, (1, 1))

    def task() -> int:
        edit()
        return 1

    if when == "before":
        edit()
    with pytest.raises(RuntimeError, match=r"randomness\.py changed during the run.* restart"):
        store.made("value", as_task(task) if when == "during" else refuse)
    with pytest.raises(MissingArtifact):
        store.read_json("value")


def test_what_was_written_is_read(store: Store) -> None:
    for value in (1, [2, "a"]):
        store.write("value", value)
        assert store.read_json("value") == value
    store.write("value", TABLE)
    pd.testing.assert_frame_equal(store.read_table("value"), TABLE)


@pytest.mark.parametrize("file", ["table.parquet", "table.card.json"])
@pytest.mark.parametrize("damage", ["cut", "delete"])
def test_damaged_entry_is_made_again(store: Store, file: str, damage: str) -> None:
    store.made("table", Counted(TABLE).task)
    path = store.root / file
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    with pytest.raises(MissingArtifact, match="artifact 'table' is"):
        store.read_table("table")
    made = Counted(TABLE)
    store.made("table", made.task)
    assert made.calls == 1
    pd.testing.assert_frame_equal(store.read_table("table"), TABLE)


ODD: list[Any] = [
    None,
    True,
    3,
    -1.5,
    "",
    "x" * 5000,
    "/etc/passwd",
    "../value.json",
    ".",
    "value.parquet",
    [],
    ["a"],
    {},
]
"""Invalid values for a field of a card."""


def mutated_cards(card: dict[str, Any]) -> list[bytes]:
    """A card with fields lost, replaced and added, and other things than cards; cut; with bytes replaced."""
    whole, draw = json.dumps(card).encode(), random.Random(1)
    values: list[Any] = [*ODD, *({k: v for k, v in card.items() if k != name} for name in card)]
    values += [card | {name: odd} for name in [*card, "another"] for odd in ODD]
    texts = [json.dumps(value).encode() for value in values] + [b"[" * 100_000, b"\xff", b"NaN", b""]
    texts += [whole[:end] for end in range(0, len(whole), 7)]
    for _ in range(300):
        at, new = draw.randrange(len(whole)), draw.randrange(256)
        texts.append(whole[:at] + bytes([new]) + whole[at + 1 :])
    return texts


@pytest.mark.filterwarnings("default")
def test_every_mutated_card_is_the_entry_or_a_damaged_one(store: Store) -> None:
    made = Counted({"x": 1})
    store.made("value", made.task)
    path = store.root / "value.card.json"
    for text in mutated_cards(json.loads(path.read_bytes())):
        path.write_bytes(text)
        with contextlib.suppress(MissingArtifact):
            assert store.read_json("value") == {"x": 1}
            continue
        before = made.calls
        assert store.made("value", made.task) == store.read_json("value") == {"x": 1}
        assert made.calls == before + 1


def test_a_card_or_content_that_is_a_folder_is_a_damaged_entry(store: Store) -> None:
    store.write("value", 1)
    for file in ("value.json", "value.card.json"):
        (store.root / file).unlink()
        (store.root / file).mkdir()
        with pytest.raises(MissingArtifact, match="'value' is damaged"):
            store.read_json("value")
        for attempt in (lambda: store.made("value", refuse), lambda: store.write("value", 2)):
            with pytest.raises(FileExistsError, match=r"value\..*json: is a folder in the place of a file"):
                attempt()


def test_swapped_entries_are_damaged_ones(store: Store) -> None:
    for name in ("one", "two"):
        store.write(name, name)
    cards = [store.root / f"{name}.card.json" for name in ("one", "two")]
    one, two = (card.read_bytes() for card in cards)
    cards[0].write_bytes(two)
    cards[1].write_bytes(one)
    for name in ("one", "two"):
        with pytest.raises(MissingArtifact, match=f"'{name}' is damaged"):
            store.read_json(name)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(30, "Read-only file system")])
def test_a_current_entry_of_a_read_only_store_is_returned(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    store.made("value", Counted(1).task)
    store.write("cheap", 2)

    def deny(*args: Any, **kwargs: Any) -> None:
        raise error

    for name in ("utime", "replace", "rename"):
        monkeypatch.setattr(os, name, deny)
    monkeypatch.setattr(Path, "write_bytes", deny)
    assert store.made("value", refuse) == 1
    store.write("cheap", 2)
    assert store.read_json("cheap") == 2


def test_crash_while_making_keeps_the_old_entry(store: Store) -> None:
    store.made("value", Counted("old").task, 1)
    with pytest.raises(AssertionError, match="made again"):
        store.made("value", refuse, 2)
    assert store.read_json("value") == "old"
    assert sorted(p.name for p in store.root.iterdir()) == ["value.card.json", "value.json"]


@pytest.mark.parametrize("before", [None, "old"])
def test_crash_between_content_and_card_leaves_no_entry(
    store: Store, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is not None:
        store.made("value", Counted(before).task, 1)

    def write(path: Path, content: bytes) -> None:
        if path.name.endswith(".card.json"):
            raise KeyboardInterrupt
        atomic_write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "atomic_write", write)
        with pytest.raises(KeyboardInterrupt):
            store.made("value", Counted("new").task, 2)
    with pytest.raises(MissingArtifact):
        store.read_json("value")
    assert store.made("value", Counted("new").task, 2) == store.read_json("value") == "new"


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
    values: list[float] = Store(root).made("shared", Counted(np.arange(50_000.0).tolist()).task)
    return values


def test_processes_may_write_one_entry_at_once(store: Store) -> None:
    with loky.ProcessPoolExecutor(2) as pool:
        got = list(pool.map(_make_large, [store.root] * 8))
    assert all(values == got[0] for values in got)
    assert store.read_json("shared") == got[0]
    assert sorted(p.name for p in store.root.iterdir()) == ["shared.card.json", "shared.json"]


def test_missing_entry_says_how_to_make_it(store: Store) -> None:
    message = r"'conditions' is missing in .*full: an earlier notebook makes it.*make reproduce PROFILE=full"
    for read in (store.read_json, store.read_table, store.read_tensors):
        with pytest.raises(MissingArtifact, match=message) as error:
            read("conditions")
        assert "parameters cell" not in str(error.value)


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_missing_entry_names_the_profile_that_has_it(store: Store, profile: str) -> None:
    other = "quick" if profile == "full" else "full"
    Store(store.root.with_name(other)).write("conditions", [])
    advice = f'PROFILE = "{other}" in the parameters cell'
    with pytest.raises(MissingArtifact, match=advice):
        Store(store.root.with_name(profile)).read_json("conditions")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a.card", "two words"])
def test_invalid_names_are_refused(store: Store, name: str) -> None:
    for ask in (
        lambda: store.made(name, refuse),
        lambda: store.write(name, 1),
        lambda: store.read_json(name),
    ):
        with pytest.raises(ValueError, match="must be letters, digits and underscores"):
            ask()


def test_card_contains_the_recipe_of_the_entry(store: Store) -> None:
    store.made("value", Counted(1).task, seed=7)
    card = json.loads((store.root / "value.card.json").read_text())
    assert card["recipe"]["task"] == "flowoe_lib.randomness.task"
    assert list(card["recipe"]["arguments"]) == ["seed"]
    assert list(card["recipe"]["sources"]) == ["flowoe_lib.randomness"]
    assert "torch" in card["recipe"]["packages"]


def test_a_copied_store_is_current(store: Store, tmp_path: Path) -> None:
    store.made("value", Counted(1).task)
    copied = Store(shutil.copytree(store.root, tmp_path / "copy" / "full"))
    assert copied.made("value", refuse) == 1


def test_tensors_come_back_in_one_order_in_every_process(tmp_path: Path) -> None:
    names = [f"{i:02d}" for i in range(40)]
    Store(tmp_path).write("many", {name: torch.zeros(1) for name in names})
    assert list(Store(tmp_path).read_tensors("many")) == names


def test_current_entries_of_other_stores_are_copied(store: Store, tmp_path: Path) -> None:
    weights = {"w": torch.arange(3.0)}
    store.made("run", as_task(lambda seed=0: 1))
    learned = Counted(weights)
    store.made("policy", learned.task)
    other = Store(tmp_path / "other", (Store(tmp_path / "empty"), store))
    torch.testing.assert_close(other.made("policy", refuse), weights)
    assert learned.calls == 1
    # From now on the other store has its own copy.
    assert Store(other.root).made("policy", refuse).keys() == weights.keys()
    # What is not current in any source is computed, and stays out of the sources.
    anew = Counted(2)
    assert other.made("run", anew.task, seed=1) == 2
    assert (anew.calls, store.read_json("run")) == (1, 1)


def test_results_are_the_entries_that_are_not_large(store: Store) -> None:
    def trains(seed: int = 0) -> Results:
        return Results(TABLE, {"w": torch.zeros(2)}, 1.0)

    trains.__annotations__["return"] = Results
    store.made("run", as_task(trains))
    store.made("large", Counted({"w": torch.zeros(LARGEST // 4)}).task, seed=1)
    store.write("level", 2.0)
    assert {card.name for card in store.results()} == {"run_table", "run_weights", "run_seconds", "level"}
    assert [card.name for card in store.results() if card.file.endswith(".safetensors")] == ["run_weights"]
