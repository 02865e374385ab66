"""The published scorecard follows from the published weights: conditions are scored again."""

import re
from pathlib import Path

import pandas as pd
import pytest

from flowoe_lib.data.conditions import conditions_from_records
from flowoe_lib.evaluation.contestants import contestants_digest, seed_of_test_days
from flowoe_lib.evaluation.scorecard import Evaluation
from flowoe_lib.policies.flow import FlowPolicy, unpack
from flowoe_lib.store import Store
from flowoe_lib.studies import comparison, opponents
from flowoe_lib.studies.worlds import dynamic_worlds, liquid_day

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "07_dynamic_markets.ipynb"
STORE = Store(NOTEBOOK.parent / "results")
KEYS = ["policy", "solver_steps", "training_seed"]


def test_conditions_scored_again_have_the_published_rows() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    set_to = {name: int(value) for name, value in re.findall(r"\b(N_\w+) = (\d[\d_]*)", text)}
    n = set_to["N_BUCKETS"]
    grid = conditions_from_records(STORE.read_json("conditions"))
    worlds = dynamic_worlds(grid, liquid_day(STORE.read_json("calibration")))
    fields = {seed: run.field for seed, run in unpack(STORE.read_tensors("universal_policies")).items()}
    trained = opponents.unpack(STORE.read_tensors("worlds_opponents_policies"))
    learned = {f"flow_refined/{seed}": FlowPolicy(field, 1) for seed, field in fields.items()}
    settings = {"conditions": [c for w in worlds for c in w.conditions], "n_buckets": n}
    digest = contestants_digest(comparison.contestants_in(worlds, learned, n, trained), settings)
    told = re.search(r"policies, digest (\w+)", text)
    if told is None or told[1] != digest:
        pytest.skip("the published results are of other sources")
    days = Evaluation(
        n_paths=set_to["N_PATHS"],
        n_few=set_to["N_FEW"],
        n_validation=set_to["N_VALIDATION"],
        n_buckets=n,
        seed=seed_of_test_days(digest),
        chunk=set_to["N_PATHS"],
    )
    table = STORE.read_table("worlds_scorecard")
    # The digest chooses the conditions, so that others are scored after every change.
    for world in (worlds[int(digest, 16) % len(worlds)], worlds[-1 - int(digest, 16) % len(worlds)]):
        condition = world.conditions[int(digest, 16) % len(world.conditions)]
        made = comparison.score_in_world(world.perceive, condition, fields, trained, days).scorecard
        there = table[(table["world"] == world.name) & (table["condition"] == condition.name)]
        pd.testing.assert_frame_equal(
            made.set_index(KEYS), there.set_index(KEYS), rtol=1e-4, atol=1e-3, check_like=True
        )
