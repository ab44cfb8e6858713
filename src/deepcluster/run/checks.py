"""What a run.json and a line of metrics.jsonl must say to be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepcluster.files import check

LINE = {"epoch": int, "loss": (int, float), "seconds": dict}
_STATUSES = ("starting", "running", "interrupted", "failed", "done")
_INFO = {"status": str, "name": str, "command": list, "started": str, "counts": dict}
_INFO_MAY = {
    "scores": dict, "timings": dict, "versions": dict, "hardware": dict, "choice": dict,
    "asked": dict, "source": list,
    "notes": list, "unwritten": list, "seconds": (int, float), "processor_seconds": (int, float),
    "minutes": (int, float, type(None)), "labels": (str, type(None)), "images": str, "seed": int,
}  # fmt: skip


def fits(value: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether a dict has these keys, with values of these types."""
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) and not isinstance(value[key], bool)
        for key, kind in kinds.items()
    )


def is_number(value: Any) -> bool:
    """Whether it is a number from 0 on."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def check_info(info: dict[str, Any]) -> None:
    """Refuse a run.json that says something else than a fit would.

    Raises:
        DamagedError: it is so.
    """
    for key in _INFO:
        check(fits(info, {key: _INFO[key]}), f"{key!r} is missing or something else")
    for key in _INFO_MAY.keys() & info.keys():
        check(fits(info, {key: _INFO_MAY[key]}), f"{key!r} is something else")
    check(info["status"] in _STATUSES, f"there is no status {info['status'][:20]!r}")
    check(all(isinstance(word, str) for word in info["command"]), "'command' is something else")
    check(all(isinstance(word, str) for word in info.get("source", [])), "'source' is no text")
    check(all(isinstance(word, str) for word in info.get("notes", [])), "'notes' is no text")
    whole = {"images": int, "skipped": int, "clusters": int}
    check(fits(info["counts"], whole), "'counts' is something else")
    check(all(is_number(info["counts"][key]) for key in whole), "'counts' is something else")
    for scores in info.get("scores", {}).values():
        sound = isinstance(scores, dict) and all(
            isinstance(x, int | float) for x in scores.values()
        )
        check(sound, "'scores' is something else")
