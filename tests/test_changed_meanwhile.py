"""Objects that another thread changes while they are used: an answer is that of before or of after."""

import threading

import numpy as np
import pytest
from test_usage_power import small

from skcompressae import CodeNearestNeighbors, _encoding, _fit_methods, _neighbors_queries, _transform_methods
from skcompressae._core._search_store import Chunk


def changing(monkeypatch, owner, name, change):
    """Have a function of the package followed by what another thread does at that moment."""
    function = getattr(owner, name)

    def followed(*given, **options):
        result = function(*given, **options)
        thread = threading.Thread(target=change)
        thread.start()
        thread.join()
        return result

    monkeypatch.setattr(owner, name, followed)


@pytest.mark.parametrize(
    "parameters", [{"sparse_output": False}, {"norm": None}, {"k": 2}, {"coding": "activations", "flattening": 0.5}]
)
def test_parameters_that_are_set_meanwhile_count_from_the_next_call_on(embeddings, monkeypatch, parameters):
    model = small().fit(embeddings)
    before = model.transform(embeddings)
    changing(monkeypatch, _encoding.Encoder, "__init__", lambda: model.set_params(**parameters))
    during = model.transform(embeddings)
    assert (during != before).nnz == 0
    after = model.transform(embeddings)
    assert type(after) is not type(during) or (after != before).nnz > 0


def test_a_fit_meanwhile_counts_from_the_next_call_on(embeddings, monkeypatch):
    model, other = small().fit(embeddings), small(n_components=48).fit(embeddings[:, :20])
    expected = model.transform_query(embeddings), other.transform_query(embeddings[:, :20])
    changing(monkeypatch, _transform_methods, "effective_n_threads", lambda: model.__dict__.update(other.__dict__))
    assert (model.transform_query(embeddings) != expected[0]).nnz == 0
    assert (model.transform_query(embeddings[:, :20]) != expected[1]).nnz == 0


def test_rows_of_a_width_that_is_being_fitted_are_refused(embeddings):
    model = small().fit(embeddings)
    model.n_features_in_ = 30  # as `fit` sets before it trains
    wide = np.ones((3, 30), dtype=np.float32)
    for method in (model.transform, model.transform_query, model.score, model.transform_packed):
        with pytest.raises(ValueError, match="X has 30 features, but the weights have 24: another thread is fitting"):
            method(wide)


def test_an_index_answers_while_it_is_built_again(embeddings, monkeypatch):
    model = small().fit(embeddings)
    codes = model.transform(embeddings)
    index = CodeNearestNeighbors(3, compressor=model).fit(codes)
    expected = index.kneighbors(embeddings[:5])[1]
    found = []

    def search():
        found.append(index.kneighbors(embeddings[:5])[1])

    changing(monkeypatch, CodeNearestNeighbors, "_make_chunk", search)
    index.fit(codes[::-1][:100])
    np.testing.assert_array_equal(found[0], expected)
    assert index.n_samples_fit_ == 100
    assert isinstance(index._chunks[0], Chunk)


def test_an_index_that_could_not_be_built_again_is_what_it_was(embeddings):
    model = small().fit(embeddings)
    codes = model.transform(embeddings)
    index = CodeNearestNeighbors(3, compressor=model).fit(codes)
    before = dict(index.__dict__)
    with pytest.raises(ValueError, match="minimum of 1"):
        index.fit(codes[:0])
    assert index.__dict__ == before


@pytest.mark.parametrize("mode", ["sparse", "asymmetric"])
def test_a_search_answers_from_the_index_that_it_began_with(embeddings, monkeypatch, mode):
    model = small().fit(embeddings)
    codes = model.transform(embeddings)
    index = CodeNearestNeighbors(60, radius=0.5, compressor=model, mode=mode, batch_size=16).fit(codes)
    queries = codes[:48] if mode == "sparse" else embeddings[:48]
    searches = (
        lambda: index.kneighbors(queries)[1],
        lambda: [list(rows) for rows in index.radius_neighbors(queries)[1]],
        lambda: index.kneighbors_graph(queries).toarray(),
    )
    for search in searches:
        expected = search()
        with monkeypatch.context() as patch:
            changing(patch, _neighbors_queries, "_moderate_rows", lambda: index.fit(codes[-60:]))
            found = search()
        assert index.n_samples_fit_ == 60
        np.testing.assert_array_equal(np.array(found, object), np.array(expected, object))
        index.fit(codes)


def test_a_fitted_model_is_one_for_others_while_a_fit_of_it_fails(embeddings, monkeypatch):
    """As an interrupt may come between any two lines, so may another thread's call."""
    model = small().fit(embeddings)
    seen = []

    class Watched(dict):
        def update(self, *given):
            seen.append("components_" in model.__dict__)
            super().update(*given)

    def fails(*_, **__):
        model.__dict__ = Watched(model.__dict__)
        model.left_by_the_fit = True
        raise ValueError("no such rows")

    monkeypatch.setattr(_fit_methods.FitMethodsMixin, "_check_rows", fails)
    with pytest.raises(ValueError, match="no such rows"):
        model.fit(embeddings)
    assert seen == [True]
    assert not hasattr(model, "left_by_the_fit")
