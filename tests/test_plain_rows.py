"""Rows and codes that skip scikit-learn's validation are exactly those that it would have handed back."""

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_embeddings
from sklearn.utils import check_array

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae._plain_rows import are_plain_codes, are_plain_rows

ROWS = make_embeddings(n_rows=30, n_features=24)

CODES = sp.random(30, 24, density=0.2, format="csr", dtype=np.float32, random_state=0)


class Subclass(np.ndarray):
    pass


@pytest.mark.parametrize("rows", [ROWS, ROWS.astype(np.float64), ROWS[::2], ROWS[:1], np.asfortranarray(ROWS)])
def test_plain_rows_come_back_from_scikit_learn_as_they_are(rows):
    assert are_plain_rows(rows, [np.float64, np.float32], 24)
    assert check_array(rows, dtype=[np.float64, np.float32]) is rows


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:0],
        ROWS[0],
        ROWS[:, :23],
        ROWS[None],
        ROWS.astype(np.float16),
        ROWS.astype(">f4"),
        ROWS.astype(int),
        ROWS.astype(complex),
        ROWS.tolist(),
        ROWS.view(Subclass),
        np.ma.masked_array(ROWS),
        sp.csr_matrix(ROWS),
        None,
    ],
    ids=lambda rows: type(rows).__name__ + str(getattr(rows, "dtype", "")) + str(getattr(rows, "shape", "")),
)
def test_anything_else_is_left_to_scikit_learn(rows):
    assert not are_plain_rows(rows, [np.float64, np.float32], 24)


@pytest.mark.parametrize("codes", [CODES, sp.csr_array(CODES), CODES.astype(np.float64), CODES[:1], CODES * 0])
def test_plain_codes_come_back_from_scikit_learn_as_they_are(codes):
    assert are_plain_codes(codes, [np.float64, np.float32], 24)
    assert check_array(codes, accept_sparse="csr", dtype=[np.float64, np.float32]) is codes


@pytest.mark.parametrize(
    "codes",
    [CODES[:0], CODES[:, :23], CODES.tocsc(), CODES.tocoo(), CODES.astype(int), CODES.toarray(), None],
    ids=lambda codes: type(codes).__name__ + str(getattr(codes, "dtype", "")) + str(getattr(codes, "shape", "")),
)
def test_any_other_codes_are_left_to_scikit_learn(codes):
    assert not are_plain_codes(codes, [np.float64, np.float32], 24)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_rows_are_still_checked_for_finiteness(bad, dtype):
    model = CompresSAETransformer(32, k=3, max_iter=5, random_state=0).fit(make_embeddings(300, 24))
    search = CodeNearestNeighbors(n_neighbors=3, compressor=model).fit(model.transform(ROWS))
    row = ROWS[:1].astype(dtype)
    row[0, 7] = bad
    with pytest.raises(ValueError, match="Input X contains"):
        model.transform(row)
    with pytest.raises(ValueError, match="Input X contains"):
        search.kneighbors(row)


@pytest.mark.parametrize(("dtype", "expected"), [(">f2", "float32"), (">f4", "float32"), (">f8", "float64")])
def test_rows_of_foreign_byte_order_are_those_of_native_order(dtype, expected):
    model = CompresSAETransformer(32, k=3, max_iter=5, random_state=0)
    codes = model.fit(ROWS.astype(dtype)).transform(ROWS.astype(dtype))
    assert codes.dtype == expected
    native = ROWS.astype(np.dtype(dtype).newbyteorder("="))
    assert (codes != model.fit(native).transform(native)).nnz == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_and_queries_of_foreign_byte_order_keep_their_precision(dtype):
    model = CompresSAETransformer(32, k=3, max_iter=5, random_state=0).fit(ROWS)
    codes = model.transform(ROWS.astype(dtype))
    foreign = np.dtype(dtype).newbyteorder("S")
    decoded = model.inverse_transform(codes.toarray().astype(foreign))
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, model.inverse_transform(codes.toarray()))
    search = CodeNearestNeighbors(n_neighbors=3, compressor=model).fit(codes)
    distances, indices = search.kneighbors(ROWS.astype(foreign))
    assert distances.dtype == dtype
    np.testing.assert_array_equal(indices, search.kneighbors(ROWS.astype(dtype))[1])
