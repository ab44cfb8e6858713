"""The loss curve and clusters of a small fixed fit, so that nobody changes the default unawares.

    python benchmarks/golden.py      # or: make golden, after a change that is meant

Every third of scikit-learn's digits, six epochs, one thread, float32. Writes tests/golden.json:
the loss of each epoch, the NMI of the final clusters, and on what kind of machine. A test fits
again: where the machine and the versions are of the same kind, the bits must be the same;
elsewhere each loss may differ by 2 % and the NMI by .05.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import record
import torch
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from deepcluster import metrics
from deepcluster.estimator import DeepCluster
from deepcluster.machine import versions

STORED = Path(__file__).parents[1] / "tests/golden.json"
LOSS_BAND, NMI_BAND = 0.02, 0.05  # relative; absolute


def kind() -> dict[str, Any]:
    """What decides the bits beside the code: the processor and the versions."""
    found = {name: text for name, text in versions().items() if name not in ("deepcluster", "timm")}
    found["capability"] = torch.backends.cpu.get_cpu_capability()
    found["coretype"] = os.environ.get("OPENBLAS_CORETYPE", "")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        lines = f"{platform.machine()} {platform.processor()} {platform.node()}"
    lines = re.sub(r"(?m)^(cpu MHz|bogomips|processor|core id|apicid|initial apicid).*$", "", lines)
    return found | {"processor": hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()}


def fit() -> dict[str, Any]:
    """The fit's loss curve and its clusters' NMI."""
    digits = load_digits()
    images = (digits.images[::3] * 15.9375).astype("uint8")
    threads = torch.get_num_threads()
    model = DeepCluster(
        n_clusters=10, epochs=6, backbone="convnet_tiny", device="cpu", random_state=0,
        settings={"train.precision": "float32"},
    )  # fmt: skip
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            clusters = model.fit_predict(images)
    finally:
        torch.set_num_threads(threads)
    return {
        "loss": [line["loss"] for line in model.history_],
        "nmi": metrics.METRICS["nmi"](clusters, digits.target[::3]),
    }


def differences(found: dict[str, Any], stored: dict[str, Any], same_bits: bool) -> list[str]:
    """What has changed, in sentences; none if nothing has."""
    said = []
    if len(found["loss"]) != len(stored["loss"]):
        return [f"{len(found['loss'])} epochs, stored {len(stored['loss'])}"]
    pairs = enumerate(zip(found["loss"], stored["loss"], strict=True), 1)
    for epoch, (now, before) in pairs:
        if now != before and (same_bits or abs(now - before) > LOSS_BAND * abs(before)):
            said.append(f"loss of epoch {epoch}: {now!r}, stored {before!r}")
    now, before = found["nmi"], stored["nmi"]
    if now != before and (same_bits or abs(now - before) > NMI_BAND):
        said.append(f"NMI {now:.4f}, stored {before:.4f}")
    return said


def main() -> None:
    """Fit, say what has changed, and store."""
    found = fit()
    record.write(STORED, {**found, "kind": kind(), "command": record.command()})
    first, last = found["loss"][0], found["loss"][-1]
    print(f"{STORED.name}: loss {first:.4f} … {last:.4f}, NMI {found['nmi']:.4f}")


if __name__ == "__main__":
    main()
