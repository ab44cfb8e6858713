"""The map: a place in the plane for every image.

A fit leaves places in the run's table, of all images or of a sample. Where it left none, a sample
is laid out here with t-SNE (van der Maaten & Hinton, 2008). Images that are not in the sample are
put at the median of the three of it that are most like them, which is said on the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE = 3000  # images that t-SNE lays out here
ANCHORS = 3  # placed images that say where another one goes


@dataclass(frozen=True)
class Layout:
    """Where the images are on the map."""

    places: np.ndarray  # (n, 2) float32
    laid_out: int  # images that the embedding itself placed; the others follow them


def lay_out(embeddings: np.ndarray, clusters: np.ndarray, given: np.ndarray) -> Layout:
    """A place for every image.

    Args:
        embeddings: ``(n, d)`` features.
        clusters: ``(n,)`` their clusters; a sample takes its share from each.
        given: ``(n, 2)`` places from the run; NaN where there is none.
    """
    places = np.array(given, np.float32)
    known = np.isfinite(places[:, 0]) & np.isfinite(places[:, 1])
    if not known.any():
        sample = _sample(clusters, SAMPLE)
        places[sample] = _tsne(np.asarray(embeddings[sample], np.float32))
        known[sample] = True
    if not known.all():
        places[~known] = _between(embeddings, places, known)
    return Layout(places, int(known.sum()))


def _sample(clusters: np.ndarray, count: int) -> np.ndarray:
    """Rows of at most about `count` images, each cluster with its share and at least one."""
    if len(clusters) <= count:
        return np.arange(len(clusters))
    rng = np.random.default_rng(0)
    chosen = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        share = max(1, round(count * len(members) / len(clusters)))
        chosen.append(rng.choice(members, share, replace=False))
    return np.sort(np.concatenate(chosen))


def _tsne(points: np.ndarray) -> np.ndarray:
    """Places of a few thousand points, ``(m, 2)``."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    m, d = points.shape
    points = points - points.mean(axis=0)
    if m < 8 or not points.any():  # too few for a perplexity; two components show them as well
        u, s, _ = np.linalg.svd(points, full_matrices=False)
        places = np.zeros((m, 2), np.float32)
        places[:, : min(2, len(s))] = (u * s)[:, :2]
        return places
    if min(m, d) > 50:
        points = PCA(50, svd_solver="randomized", random_state=0).fit_transform(points)
    tsne = TSNE(perplexity=min(30.0, (m - 1) / 3), max_iter=500, random_state=0)
    placed: np.ndarray = tsne.fit_transform(points)
    return placed


def _between(embeddings: np.ndarray, places: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Places of the images that have none, ``(m, 2)``.

    The median, not the mean: where one anchor lies on another island, the mean is in the sea. A
    small scatter keeps images with the same anchors apart.
    """
    from sklearn.neighbors import NearestNeighbors

    anchors = np.flatnonzero(known)
    rest = np.flatnonzero(~known)
    search = NearestNeighbors(n_neighbors=min(ANCHORS, len(anchors)), algorithm="brute")
    search.fit(np.asarray(embeddings[anchors], np.float32))
    found = search.kneighbors(np.asarray(embeddings[rest], np.float32), return_distance=False)
    spread = np.ptp(places[anchors], axis=0).max() / 200
    scatter = np.random.default_rng(0).normal(size=(len(rest), 2)) * spread
    return np.asarray(np.median(places[anchors[found]], axis=1) + scatter, np.float32)
