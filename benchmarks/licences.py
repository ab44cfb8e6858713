"""The licences of what the package depends on, as the packages themselves say them.

    python benchmarks/licences.py      # or: make licences

Each direct and indirect dependency that is installed, without extras: name, version, licence.
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement


def closure(name: str) -> dict[str, Distribution]:
    """A package and all that it needs here, by name."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        one = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if one in found:
            continue
        try:
            found[one] = distribution(one)
        except PackageNotFoundError:
            continue
        for text in found[one].requires or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                waiting.append(need.name)
    return found


def licence(package: Distribution) -> str:
    """What a package says of its licence: the expression, else its classifiers, else the text."""
    facts = package.metadata
    expression = facts.get("License-Expression")
    said = [line for line in facts.get_all("Classifier") or [] if line.startswith("License ::")]
    named = ", ".join(line.rpartition(" :: ")[2] for line in said)
    text = (facts.get("License") or "").strip().partition("\n")[0]
    return expression or named or text or "not said"


def main() -> None:
    """Print a line each."""
    found = closure("deepcluster")
    del found["deepcluster"]
    for name, package in sorted(found.items()):
        print(f"{name:28} {package.version:14} {licence(package)}")


if __name__ == "__main__":
    main()
