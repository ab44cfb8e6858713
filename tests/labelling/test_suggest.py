"""Images to label are typical, spread, and never those that have a label."""

import numpy as np
import pytest
from test_candidates import blobs

from deepcluster.labelling.candidates import Pool
from deepcluster.labelling.spread import neighbour_graph
from deepcluster.labelling.suggest import suggest, typicality


@pytest.fixture(scope="module")
def pool() -> Pool:
    x, _ = blobs(400, classes=5)
    return Pool(x, neighbour_graph(x))


def test_as_many_images_as_classes_meet_all_of_them(pool: Pool) -> None:
    _, y = blobs(400, classes=5)
    found = suggest(pool, 5)
    assert sorted(y[found.rows]) == [0, 1, 2, 3, 4]
    assert (y[found.rows[found.part]] == y).mean() > 0.9  # each speaks for those like it


def test_they_are_more_typical_than_others(pool: Pool) -> None:
    typical = typicality(pool.features)
    found = suggest(pool, 20)
    assert typical[found.rows].mean() > np.quantile(typical, 0.7)


def test_later_rounds_never_ask_again(pool: Pool) -> None:
    _, y = blobs(400, classes=5)
    seen = suggest(pool, 10).rows
    probabilities = np.eye(5)[y] * 0.9 + 0.02
    for given in (None, probabilities):
        more = suggest(pool, 30, labelled=seen, probabilities=given)
        assert len(set(more.rows.tolist())) == 30
        assert not set(more.rows.tolist()) & set(seen.tolist())
        assert (more.part[seen] == -1).all()
        assert (more.part[more.rows] == np.arange(30)).all()


def test_what_the_classifier_doubts_comes_first(pool: Pool) -> None:
    _, y = blobs(400, classes=5)
    probabilities = np.eye(5)[y] * 0.9 + 0.02
    doubted = np.arange(100, 180)
    probabilities[doubted] = 0.2
    found = suggest(pool, 10, labelled=np.arange(5), probabilities=probabilities)
    assert set(found.rows.tolist()) <= set(doubted.tolist())


@pytest.mark.parametrize("count", [1, 397, 400, 1000])
def test_any_number_can_be_asked_for(pool: Pool, count: int) -> None:
    found = suggest(pool, count, labelled=np.array([1, 2]))
    assert len(np.unique(found.rows)) == min(count, 398)


def test_images_that_are_all_the_same() -> None:
    x = np.ones((30, 4), np.float32) / 2
    found = suggest(Pool(x, neighbour_graph(x)), 5)
    assert len(np.unique(found.rows)) == 5


def test_nothing_is_left(pool: Pool) -> None:
    assert len(suggest(pool, 5, labelled=np.arange(400)).rows) == 0
