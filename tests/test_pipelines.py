"""Real use on real rows: docstrings of NumPy and the standard library through scikit-learn's own machinery."""

import ast
import sysconfig
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from skcompressae import CompresSAETransformer

pytestmark = pytest.mark.filterwarnings(
    # Sixteen hundred texts do not fill every width that a search tries, and a training fold even less.
    "ignore::skcompressae.exceptions.DeadLatentsWarning"
)
N_TEXTS = 1600


def docstrings_below(folder):
    """Yield docstrings of the definitions in the modules of one folder."""
    for path in sorted(folder.glob("*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node)
                if text and len(text.split()) >= 6:
                    yield text


@pytest.fixture(scope="module")
def texts():
    folders = Path(np.__file__).parent / "lib", Path(sysconfig.get_path("stdlib"))
    halves = [list(islice(docstrings_below(folder), N_TEXTS // 2)) for folder in folders]
    collected = list(dict.fromkeys(halves[0] + halves[1]))
    assert len(collected) > 1000
    return [collected[i] for i in np.random.RandomState(0).permutation(len(collected))]


def embedding_steps(n_features=64):
    return [
        ("tfidf", TfidfVectorizer(stop_words="english", sublinear_tf=True, min_df=2)),
        ("svd", TruncatedSVD(n_components=n_features, random_state=0)),
        ("normalize", Normalizer()),
    ]


@pytest.fixture(scope="module")
def rows(texts):
    return Pipeline(embedding_steps()).fit_transform(texts).astype(np.float32)


def small(**params):
    defaults = {"n_components": 256, "k": 16, "max_iter": 120, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **params})


def recall(found, wanted):
    """Share of each row's wanted neighbours that were found."""
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, wanted, strict=True)])


def test_pipeline_from_texts_to_codes_and_back(texts):
    pipeline = Pipeline([*embedding_steps(), ("compress", small(n_components=512, k=32))])
    codes = pipeline.fit_transform(texts)
    assert codes.shape == (len(texts), 512)
    assert np.diff(codes.indptr).max() == 32
    assert pipeline.score(texts) > 0.95
    again = pipeline.transform(texts[:20])
    np.testing.assert_allclose(again.toarray(), codes[:20].toarray(), rtol=1e-4, atol=1e-5)
    decoded = pipeline[-1].inverse_transform(codes)
    dense = pipeline[:-1].transform(texts)
    cosines = (decoded * dense).sum(axis=1)
    # a text without a single known word is a zero row, on both sides
    assert cosines[dense.any(axis=1)].mean() > 0.95
    assert len(pipeline.get_feature_names_out()) == 512


def test_neighbours_among_codes_are_the_rows_neighbours(rows):
    documents, queries = rows[100:], rows[:100]
    wanted = NearestNeighbors(n_neighbors=10, metric="cosine").fit(documents).kneighbors(queries, return_distance=False)
    compressor = small(n_components=512, k=32, max_iter=300).fit(documents)
    codes = compressor.transform(documents)
    index = NearestNeighbors(n_neighbors=10, metric="cosine").fit(codes)
    by_codes = index.kneighbors(compressor.transform(queries), return_distance=False)
    # ten of fifteen hundred at random would be below 0.01
    assert recall(by_codes, wanted) > 0.5
    decoded = NearestNeighbors(n_neighbors=10, metric="cosine").fit(compressor.inverse_transform(codes))
    assert recall(decoded.kneighbors(queries, return_distance=False), wanted) > 0.7
    unit_codes = compressor.set_params(norm="unit").transform(documents)
    scores = (compressor.transform_query(queries) @ unit_codes.T).toarray()
    expanded = np.argsort(-scores, axis=1)[:, :10]
    assert recall(expanded, decoded.kneighbors(queries, return_distance=False)) > 0.98


def test_grid_search_ranks_k_and_width_without_a_scorer(rows):
    search = GridSearchCV(small(max_iter=40), {"k": [4, 32], "n_components": [64, 256]}, cv=2, refit=True)
    search.fit(rows[:800])
    results = {
        (params["n_components"], params["k"]): score
        for params, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True)
    }
    for n_components in (64, 256):
        assert results[n_components, 32] > results[n_components, 4]
    assert search.best_params_["k"] == 32
    assert search.best_score_ == max(results.values()) <= 1
    assert search.transform(rows).shape == (len(rows), search.best_params_["n_components"])


def test_halving_grid_search_runs_over_rows_and_over_steps(rows):
    grid = {"k": [4, 32], "n_components": [64, 128]}
    over_rows = HalvingGridSearchCV(
        small(max_iter=30), grid, cv=2, factor=2, min_resources=200, random_state=0, refit=False
    ).fit(rows[:800])
    assert over_rows.best_params_["k"] == 32
    over_steps = HalvingGridSearchCV(
        small(), grid, resource="max_iter", max_resources=40, min_resources=10, cv=2, factor=2, random_state=0
    ).fit(rows[:400])
    assert over_steps.best_params_["k"] == 32
    assert over_steps.n_resources_ == [10, 20, 40][: len(over_steps.n_resources_)]


def test_grid_search_reaches_into_a_pipeline(texts):
    pipeline = Pipeline([*embedding_steps(32), ("compress", small(n_components=64, max_iter=20))])
    search = GridSearchCV(pipeline, {"compress__k": [2, 8]}, cv=2).fit(texts[:500])
    assert search.best_params_ == {"compress__k": 8}


def test_codes_are_features_for_a_classifier(texts):
    labels = np.array(["array" in text for text in texts])
    pipeline = Pipeline([*embedding_steps(), ("compress", small(max_iter=60)), ("classify", RidgeClassifier())])
    scores = cross_val_score(pipeline, texts, labels, cv=2)
    assert scores.mean() > max(labels.mean(), 1 - labels.mean()) + 0.03


def test_feature_union_joins_codes_and_dense_features(rows):
    union = FeatureUnion([("codes", small(max_iter=20)), ("dense", PCA(n_components=3))])
    joined = union.fit_transform(rows)
    assert sp.issparse(joined)
    assert joined.shape == (len(rows), 259)
    codes = small(max_iter=20).fit_transform(rows)
    np.testing.assert_allclose(joined.tocsr()[:, :256].toarray(), codes.toarray(), rtol=1e-5, atol=1e-6)
    names = union.get_feature_names_out()
    assert names[0] == "codes__compressaetransformer0"
    assert names[-1] == "dense__pca2"


def test_column_transformer_compresses_some_columns_and_keeps_others(rows):
    lengths = np.arange(len(rows), dtype=np.float32)[:, None]
    table = np.hstack([rows, lengths])
    columns = ColumnTransformer(
        [("embedding", small(max_iter=20), slice(0, 64)), ("length", StandardScaler(), [64])], sparse_threshold=1.0
    )
    together = columns.fit_transform(table)
    assert together.shape == (len(rows), 257)
    codes = small(max_iter=20).fit_transform(rows)
    np.testing.assert_allclose(together[:, :256].toarray(), codes.toarray(), rtol=1e-5, atol=1e-6)
    assert len(columns.get_feature_names_out()) == 257


def test_column_transformer_gives_a_data_frame_where_codes_are_dense(rows):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(rows[:300], columns=[f"dim{i}" for i in range(64)])
    frame["n_words"] = np.arange(300)
    columns = ColumnTransformer(
        [("embedding", small(max_iter=5, sparse_output=False), frame.columns[:64].tolist())],
        remainder="passthrough",
    ).set_output(transform="pandas")
    together = columns.fit_transform(frame)
    assert together.columns[0] == "embedding__compressaetransformer0"
    assert together["remainder__n_words"].tolist() == list(range(300))


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib_workers_encode_as_the_parent_does(rows, backend):
    compressor = small(max_iter=20).fit(rows)
    # max_nbytes sends the weights as read-only memory maps, as joblib does with large ones
    parts = Parallel(n_jobs=2, backend=backend, max_nbytes=1000)(
        delayed(compressor.transform)(rows[start : start + 400]) for start in range(0, len(rows), 400)
    )
    expected = compressor.transform(rows)
    codes = sp.vstack(parts).tocsr()
    np.testing.assert_array_equal(codes.indices, expected.indices)
    np.testing.assert_allclose(codes.data, expected.data, rtol=1e-5, atol=1e-6)  # small values of float32 fits


def test_joblib_workers_train(rows):
    compressor = small(max_iter=15)
    inside = Parallel(n_jobs=2, max_nbytes=1000)(delayed(clone(compressor).fit)(rows[:500]) for _ in range(2))
    outside = clone(compressor).fit(rows[:500])
    for trained in inside:
        np.testing.assert_array_equal(trained.components_, inside[0].components_)
        assert trained.score(rows) == pytest.approx(outside.score(rows), abs=5e-3)
