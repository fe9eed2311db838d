"""What is measured by dot products of codes that know nothing of lengths, and of frozen compressors."""

import warnings
from copy import deepcopy

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler, normalize

from skcompressae import CompresSAETransformer, CompressionTradeoffDisplay, LatentUsageDisplay, LossCurveDisplay
from skcompressae.metrics import RetrievalRecallScorer

matplotlib.use("Agg")

MESSAGE = "codes of norm={}.* keep nothing of the rows' lengths, of which the largest is .* times the smallest"


@pytest.mark.parametrize("norm", [None, "unit"])
def test_lengths_that_codes_have_lost_are_told(fitted, embeddings, norm):
    model = deepcopy(fitted).set_params(norm=norm)
    with pytest.warns(UserWarning, match=MESSAGE.format(repr(norm))):
        RetrievalRecallScorer(metric="dot")(model, embeddings)
    with pytest.warns(UserWarning, match=MESSAGE.format(repr(norm))):
        CompressionTradeoffDisplay.from_estimator(model, embeddings, metric="dot", n_neighbors=5, k=6)


def test_nothing_is_told_where_lengths_do_not_matter(fitted, embeddings):
    projecting = deepcopy(fitted).set_params(norm=None)
    unit = normalize(embeddings)
    unit[3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = RetrievalRecallScorer(metric="dot")(projecting, unit)
        RetrievalRecallScorer(metric="dot")(fitted, embeddings)
        RetrievalRecallScorer()(projecting, embeddings)
    assert found > 0.5


@pytest.mark.parametrize("factor", [2.0**-700, 2.0**540, 2.0**1000])
def test_scores_by_cosine_know_no_scale(fitted, embeddings, factor):
    rows = embeddings.astype(np.float64)
    assert RetrievalRecallScorer()(fitted, factor * rows) == RetrievalRecallScorer()(fitted, rows)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize(
    "wrapped",
    [
        FrozenEstimator,
        lambda model: make_pipeline(FrozenEstimator(model)),
        lambda model: FrozenEstimator(make_pipeline(model)),
        lambda model: make_pipeline(make_pipeline(model)),
    ],
)
def test_frozen_compressors_are_scored_as_they_are(fitted, embeddings, metric, wrapped):
    scorer = RetrievalRecallScorer(metric=metric)
    assert scorer(wrapped(fitted), embeddings) == scorer(fitted, embeddings)
    assert np.isfinite(scorer(fitted, embeddings))


def test_rows_go_through_the_steps_of_nested_pipelines(embeddings):
    steps = Normalizer(), StandardScaler(), CompresSAETransformer(n_components=64, k=4, max_iter=20, random_state=0)
    flat = make_pipeline(*steps).fit(embeddings)
    nested = make_pipeline(steps[0], make_pipeline(*steps[1:])).fit(embeddings)
    assert RetrievalRecallScorer()(nested, embeddings) == RetrievalRecallScorer()(flat, embeddings)
    for display in (LossCurveDisplay, LatentUsageDisplay):
        display.from_estimator(FrozenEstimator(nested))
        with pytest.raises(TypeError, match=r"must be a CompresSAETransformer .* got StandardScaler"):
            display.from_estimator(flat[:-1])
    plt.close("all")
