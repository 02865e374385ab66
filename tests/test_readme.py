"""The README's code runs as it stands, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.splitlines()[0])
def test_snippets_run(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    times = pd.date_range("2024-01-02", periods=60, freq="B")
    price = 100 * np.exp(0.01 * np.sin(np.arange(60)))
    bars = pd.DataFrame({"time": times, "open": price, "high": price * 1.01, "low": price * 0.99})
    bars.assign(close=price, volume=1e6).to_parquet("bars.parquet")
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^):]+)\)", README))))
def test_links_lead_to_files(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_run_filled_the_result_blocks() -> None:
    for block in re.findall(r"<!-- (\w+):start -->", README):
        body = re.search(rf"<!-- {block}:start -->\n(.*?)\n<!-- {block}:end -->", README, flags=re.DOTALL)
        assert body is not None
        assert (
            body[1].strip() == (ROOT / "figures" / f"readme_{block}.md").read_text(encoding="utf-8").strip()
        )
