"""A few labels -> the classifier that comes of them, and an honest word on how good it is.

Several ways to learn are tried by cross-validation on the given labels alone, the best is fitted to
all of them, its probabilities are calibrated by a temperature (Guo et al. 2017) on the held-out
predictions, and what it will get right is told with an interval.

The interval. Held-out hits of forty labels say little by themselves, and labels that were chosen
for being typical, or doubtful, are not like the others. So the classifier's own confidence on *all*
images is corrected by the hits: its logit is a line of the logit that the classifier gives, with
a slope and a shift that are unknown and have priors, whose posterior comes from the held-out labels
(a hit or a miss at this confidence, each counting less than 1: see EVIDENCE_DRAWN). The accuracy is
the mean of the corrected confidences over the images of the run, its quantiles are the interval.
Labelled images count among these with the confidence of a classifier that had not seen them: where
hundreds were labelled because they are hard, the rest alone is easier than new images are.
With classes of one label each nothing can be held out, and the interval is the prior's: wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcluster.files import check, reading
from deepcluster.labelling.candidates import CANDIDATES, Pool
from deepcluster.labelling.heads import Head, kind_of, restored
from deepcluster.labelling.spread import neighbour_graph
from deepcluster.run import RunDir

POOL = 20_000  # images at most among which labels spread and accuracy is told
FOLDS = 10
TEMPERATURES = np.geomspace(0.05, 20, 121)
TRUST_TEMPERATURE = 1.0  # standard deviation of log(temperature) before a label is seen
TRUST_SHIFT = 2.0  # and of the shift
TRUST_SLOPE = 0.5  # and of log(slope)
MANY = 100  # labels given one by one, from which on the product is taken, below spreading, unless
BETTER = 2.0  # by so many standard errors another one wins: to choose is to hope
EVIDENCE_DRAWN, EVIDENCE_CHOSEN = 0.6, 0.4
"""What a held-out label counts for in the posterior of slope and shift, where labels came by chance
and where they were chosen. Ten fits share nine tenths of their labels, and candidate and
temperature are chosen by the same labels: counted as 1 each they say more than they know. Those
that were chosen for being typical or doubtful also differ from others of the same confidence."""
QUANTILES = (0.05, 0.95)  # of the posterior
SHIFTS, SLOPES = (  # every pair of them: (s,) each
    grid.ravel()
    for grid in np.meshgrid(np.linspace(-6, 6, 121), np.exp(np.linspace(-1.2, 1.2, 13)))
)
POINTS = 200  # confidences at most that stand for those of all images
LOOKED_AT = 5  # labelled neighbours that a label is held against


@dataclass(frozen=True)
class ClassReport:
    """What is known of one class."""

    name: str
    labels: int
    checked: int  # of those, predicted by a classifier that had not seen them
    right: int  # of the checked
    predicted: int  # images that the classifier gives this class
    expected: float  # share of those that are of it


@dataclass(frozen=True)
class Expectation:
    """How good a classifier will be on images like those of the run."""

    accuracy: float
    low: float  # the accuracy is above this, and below `high`, nine times in ten
    high: float
    checked: int
    right: int


@dataclass(frozen=True)
class Classifier:
    """Features -> classes.

    Attributes:
        head: features to logits.
        names: of the classes.
        temperature: the logits are divided by it.
        slope: what the logit of the largest probability is multiplied by,
        shift: and then shifted by.
        confidences: ``(q,)`` ascending, of images of the run: what a risk is held against.
        method: the candidate that was taken.
    """

    head: Head
    names: list[str]
    temperature: float
    slope: float
    shift: float
    confidences: np.ndarray
    method: str

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """``(n, d)`` features of length 1 -> calibrated probabilities ``(n, classes)``."""
        starts = range(0, max(len(features), 1), 4096)
        with torch.no_grad():
            parts = [  # each a copy: the features of a run are a file that is only read
                self.calibrated(self.head(torch.from_numpy(np.array(features[i : i + 4096], "f"))))
                for i in starts
            ]
        found: np.ndarray = torch.cat(parts).numpy()
        return found

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits ``(b, classes)`` -> probabilities."""
        return shifted((logits / self.temperature).softmax(dim=1), self.slope, self.shift)

    def threshold(self, risk: float) -> float:
        """The confidence from which on the images of the run are expected to be wrong `risk` often.

        Returns:
            A confidence; above 1 where not even the surest images are sure enough.
        """
        falling = self.confidences[::-1]
        wrong = np.cumsum(1 - falling) / np.arange(1, len(falling) + 1)
        sure = int((wrong <= risk).sum())  # the mean of ever larger errors never falls
        return float(falling[sure - 1]) if sure else 2.0

    def save(self, run: RunDir, facts: dict[str, object]) -> None:
        """Write it into the run folder, in place of an older one."""
        tensors = {name: value.numpy() for name, value in self.head.state_dict().items()}
        run.write_classifier(
            {**tensors, "confidences": self.confidences.astype(np.float32)},
            {
                "kind": kind_of(self.head),
                "method": self.method,
                "classes": self.names,
                "temperature": self.temperature,
                "slope": self.slope,
                "shift": self.shift,
                **facts,
            },
        )

    @classmethod
    def load(cls, run: RunDir) -> Classifier:
        """Read what :meth:`save` wrote.

        Raises:
            RunError: there is none, or it is damaged.
        """
        tensors, facts = run.read_classifier()
        with reading(run.classifier):
            confidences = np.asarray(tensors.pop("confidences"), np.float64)
            found = cls(
                head=restored(facts["kind"], {k: torch.from_numpy(v) for k, v in tensors.items()}),
                names=list(facts["classes"]),
                temperature=float(facts["temperature"]),
                slope=float(facts.get("slope", 1.0)),  # older ones have none
                shift=float(facts["shift"]),
                confidences=confidences,
                method=facts["method"],
            )
            check(all(isinstance(name, str) for name in found.names), "a class has no name")
            check(len(found.names) == found.head.classes, "its classes are not as many as it says")
            check(confidences.ndim == 1 and len(confidences) > 0, "it has no confidences")
            for number in (found.temperature, found.slope):
                check(0 < number < np.inf and np.isfinite(found.shift), "it is not finite")
        return found


@dataclass(frozen=True)
class Taught:
    """What came of a few labels."""

    classifier: Classifier
    expected: Expectation
    scores: dict[str, float]  # held-out accuracy of each candidate; empty where none could be told
    classes: list[ClassReport]
    doubtful: np.ndarray  # (m,) indices into the given labels that look like mistakes
    helpful: np.ndarray  # rows of images whose label would help most, the most helpful first


def shifted(probabilities: Tensor, slope: float, shift: float) -> Tensor:
    """Probabilities whose largest has its logit on a line; the rest share what is left.

    The largest stays so: it falls no further than to where the second would meet it.
    """
    (top, second), (place, _) = (t.split(1, dim=1) for t in probabilities.topk(2, dim=1))
    top = top.clamp(1e-6, 1 - 1e-6)
    meet = second / (1 - top + second)
    moved = (slope * top.logit() + shift).sigmoid().maximum(meet + 1e-6).clamp(max=1 - 1e-6)
    rest = probabilities * (1 - moved) / (1 - top)
    found: Tensor = rest.scatter(1, place, moved)
    return found


def make_pool(features: np.ndarray, labelled: np.ndarray) -> tuple[Pool, np.ndarray]:
    """At most POOL images with their graph, the labelled ones among them.

    Returns:
        the pool, and the ``(p,)`` ascending rows of `features` that it holds.
    """
    n = len(features)
    rows = np.arange(n)
    if n > POOL:
        drawn = np.random.default_rng(0).permutation(n)[:POOL]
        rows = np.union1d(drawn, labelled)
    held = np.ascontiguousarray(features[rows], np.float32)
    return Pool(held, neighbour_graph(held)), rows


def teach(
    pool: Pool,
    rows: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    *,
    groups: np.ndarray | None = None,
    drawn: bool = True,
    seed: int = 0,
) -> Taught:
    """Learn classes from a few labels.

    Args:
        pool: images, labelled or not.
        rows: ``(m,)`` the labelled ones, each once.
        labels: ``(m,)`` their classes, numbers into `names`.
        names: of the classes, at least two that have labels.
        groups: ``(m,)`` equal for images that were labelled in one act, which look alike: they
            are held out together and checked as one. None: each for itself.
        drawn: whether the labelled images came by chance. Then a class of one label counts as
            missed, as it would have been without it: that is how often an image is of a class that
            has no label yet (Good 1953). Of images that were spread on purpose it says nothing.
        seed: of the folds.
    """
    classes = len(names)
    if len(np.unique(labels)) < 2:
        raise ValueError("a classifier needs labels of at least two classes")
    groups = np.arange(len(rows)) if groups is None else groups
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    of_group = folds(labels[first], np.random.default_rng(seed), alone=drawn)
    fold = of_group[group]
    checked = np.sort(first[of_group >= 0])
    held_out = {name: np.full((len(rows), classes), np.nan) for name in CANDIDATES}
    if len(checked):
        for name, fit in CANDIDATES.items():
            for number in np.unique(fold[checked]):
                out = fold == number
                head = fit(pool, rows[~out], labels[~out], classes)
                held_out[name][out] = logits_of(head, pool.features[rows[out]])
    known = labels[checked]
    hits = {name: held_out[name][checked].argmax(1) == known for name in CANDIDATES}
    method = _choose(hits, "product" if len(first) >= MANY else "spreading")
    temperature = _temperature(held_out[method][checked], known)
    head = CANDIDATES[method](pool, rows, labels, classes)
    logits = logits_of(head, pool.features)
    raw = _softmax(logits / temperature)
    seen = _softmax(held_out[method][checked] / temperature)
    weight = _posterior(seen.max(1), hits[method], EVIDENCE_DRAWN if drawn else EVIDENCE_CHOSEN)
    slope, shift = float(weight @ SLOPES), float(weight @ SHIFTS)
    unseen = raw.copy()  # as classifiers say that had not seen the image
    unseen[rows] = np.nan
    unseen[rows[fold >= 0]] = _softmax(held_out[method][fold >= 0] / temperature)
    unseen = unseen[np.isfinite(unseen).all(axis=1)]
    if not len(unseen):  # all are labelled, and none could be held out
        unseen = raw
    curve = _accuracies(unseen.max(1))
    order = np.argsort(curve)
    low, high = np.interp(QUANTILES, np.cumsum(weight[order]), curve[order])
    chosen = shifted(torch.from_numpy(raw), slope, shift).numpy()
    confidence = chosen.max(1)
    every = shifted(torch.from_numpy(unseen), slope, shift).numpy().max(1)
    every = np.quantile(every, np.linspace(0, 1, min(len(every), 1000)))
    picked = chosen.argmax(1)
    return Taught(
        classifier=Classifier(head, list(names), temperature, slope, shift, every, method),
        expected=Expectation(
            float(weight @ curve), float(low), float(high), len(checked), int(hits[method].sum())
        ),
        scores={k: float(v.mean()) for k, v in hits.items()} if len(checked) else {},
        classes=[
            ClassReport(
                name=name,
                labels=int((labels == k).sum()),
                checked=int((labels[checked] == k).sum()),
                right=int(hits[method][labels[checked] == k].sum()),
                predicted=int((picked == k).sum()),
                expected=float(confidence[picked == k].mean()) if (picked == k).any() else 0.0,
            )
            for k, name in enumerate(names)
        ],
        doubtful=find_mistakes(pool.features[rows], labels),
        helpful=_helpful(pool, chosen, rows),
    )


def folds(labels: np.ndarray, rng: np.random.Generator, *, alone: bool) -> np.ndarray:
    """A fold for each label, its class spread evenly over them; -1 for one that is never held out.

    Args:
        labels: ``(m,)``.
        rng: shuffles labels of a class.
        alone: hold out the only labels of their classes as well, which are sure to be missed.
    """
    counts = np.bincount(labels)
    fold = np.full(len(labels), -1)
    usable = np.flatnonzero(counts[labels] > 1)
    if alone and (counts > 0).sum() > 2:
        usable = np.arange(len(labels))
    count = min(FOLDS, len(usable))
    order = rng.permutation(usable)
    order = order[np.argsort(labels[order], kind="stable")]
    fold[order] = np.arange(len(order)) % max(count, 1)
    return fold


def logits_of(head: Head, features: np.ndarray) -> np.ndarray:
    """``(n, classes)`` float64."""
    rows = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    with torch.no_grad():
        return torch.cat([head(part) for part in rows.split(4096)]).double().numpy()


def find_mistakes(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Labels that stand alone among those of another class: their indices.

    Of the LOOKED_AT nearest labelled images (fewer, where a class has no more), all are of one
    other class, while the label's own class has others elsewhere.
    """
    if len(labels) <= LOOKED_AT:
        return np.zeros(0, np.int64)
    alike = features @ features.T
    np.fill_diagonal(alike, -np.inf)
    counts = np.bincount(labels)
    near = labels[np.argsort(-alike, axis=1, kind="stable")[:, :LOOKED_AT]]
    found = []
    for i, own in enumerate(labels.tolist()):
        other = int(near[i, 0])
        asked = near[i, : min(LOOKED_AT, counts[other])]
        if own != other and counts[own] > 1 and len(asked) > 1 and (asked == other).all():
            found.append(i)
    return np.array(found, np.int64)


def _choose(hits: dict[str, np.ndarray], first: str) -> str:
    """The `first` candidate, unless another is better by more than chance would have it.

    Args:
        hits: whether each held-out label was met, ``(m,)``, by candidate.
        first: one of them.
    """
    best, most = first, 0.0
    if len(hits[first]) < 2:
        return first
    for name in hits:
        gain = hits[name].astype(float) - hits[first]
        if gain.mean() > max(BETTER * gain.std() / np.sqrt(len(gain)), most):
            best, most = name, float(gain.mean())
    return best


def _likelihoods(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log of the probability that softmax gives each label, ``(m,)``."""
    top = logits.max(axis=1, initial=-np.inf)
    normal = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    found: np.ndarray = logits[np.arange(len(labels)), labels] - normal
    return found


def _temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Of the largest posterior: held-out likelihood and a prior around 1."""
    prior = -0.5 * np.square(np.log(TEMPERATURES) / TRUST_TEMPERATURE)
    likelihood = [_likelihoods(logits / t, labels).sum() for t in TEMPERATURES]
    return float(TEMPERATURES[int((prior + likelihood).argmax())])


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    found: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return found


def _logit(confidence: np.ndarray) -> np.ndarray:
    kept = np.clip(confidence, 1e-3, 1 - 1e-3)
    found: np.ndarray = np.log(kept / (1 - kept))
    return found


def _posterior(confidence: np.ndarray, hit: np.ndarray, evidence: float) -> np.ndarray:
    """Posterior of SLOPES and SHIFTS: hits and misses at these confidences, `evidence` each."""
    log = -0.5 * np.square(SHIFTS / TRUST_SHIFT) - 0.5 * np.square(np.log(SLOPES) / TRUST_SLOPE)
    for z, met in zip(_logit(confidence), hit, strict=True):
        line = SLOPES * z + SHIFTS
        log -= evidence * np.logaddexp(0, -line if met else line)
    weight = np.exp(log - log.max())
    found: np.ndarray = weight / weight.sum()
    return found


def _accuracies(confidence: np.ndarray) -> np.ndarray:
    """Mean confidence of images under each of SLOPES and SHIFTS."""
    points = min(POINTS, len(confidence))
    z = np.quantile(_logit(confidence), (np.arange(points) + 0.5) / points)
    found: np.ndarray = (1 / (1 + np.exp(-(np.outer(SLOPES, z) + SHIFTS[:, None])))).mean(axis=1)
    return found


def _helpful(pool: Pool, probabilities: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """Rows that are not labelled, the one first whose neighbours the classifier doubts most."""
    top = -np.sort(-probabilities, axis=1)[:, :2]
    doubt = 1 - (top[:, 0] - top[:, 1])
    around = np.asarray(pool.graph @ doubt).ravel()  # its neighbours' as well: it speaks for them
    around[labelled] = -np.inf
    order = np.argsort(-around, kind="stable")[: len(doubt) - len(labelled)]
    return order


def describe(taught: Taught, notes: list[str]) -> dict[str, object]:
    """What classifier.json says beside the classifier itself."""
    expected = taught.expected
    return {
        "expected": {
            "accuracy": round(expected.accuracy, 4),
            "low": round(expected.low, 4),
            "high": round(expected.high, 4),
            "checked": expected.checked,
            "right": expected.right,
        },
        "tried": {name: round(score, 4) for name, score in taught.scores.items()},
        "per_class": [
            {**report.__dict__, "expected": round(report.expected, 4)} for report in taught.classes
        ],
        "notes": notes,
    }
