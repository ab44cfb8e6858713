"""The default fit is what it was, unless somebody means to change it (`make golden`)."""

import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_the_default_fit_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import golden

    stored = json.loads(golden.STORED.read_text(encoding="utf-8"))
    found = golden.fit()
    said = golden.differences(found, stored, same_bits=golden.kind() == stored["kind"])
    assert not said, "; ".join([*said, "if that is meant: make golden, and say so in docs/log.md"])


def test_differences_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import golden

    one = {"loss": [2.0, 1.0], "nmi": 0.9}
    near = {"loss": [2.01, 1.0], "nmi": 0.87}
    assert golden.differences(one, one, same_bits=True) == []
    assert golden.differences(near, one, same_bits=False) == []
    assert len(golden.differences(near, one, same_bits=True)) == 2
    assert len(golden.differences({"loss": [2.1, 1.0], "nmi": 0.8}, one, same_bits=False)) == 2
    assert "epochs" in golden.differences({"loss": [2.0], "nmi": 0.9}, one, same_bits=True)[0]
