"""Rows that are no NumPy arrays: tensors, frames and columns of lists; and which row is not finite."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_embeddings

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae._core._threads import row_blocks
from skcompressae._encoding import BLOCK_ROWS

ROWS = make_embeddings(n_rows=60, n_features=24)
NAMES = [f"x{i}" for i in range(ROWS.shape[1])]


@pytest.fixture(scope="module")
def model():
    return CompresSAETransformer(32, k=3, max_iter=5, random_state=0).fit(ROWS)


def as_polars(rows):
    return pytest.importorskip("polars").DataFrame(rows, schema=NAMES)


def as_arrow(rows):
    return pytest.importorskip("pyarrow").table(dict(zip(NAMES, rows.T.copy(), strict=True)))


@pytest.mark.parametrize("convert", [torch.tensor, as_polars, as_arrow], ids=["torch", "polars", "pyarrow"])
@pytest.mark.parametrize(("dtype", "expected"), [("float32", "float32"), ("float64", "float64"), ("int32", "float64")])
def test_codes_have_the_dtype_of_the_rows_of_other_libraries(convert, dtype, expected):
    rows = (8 * ROWS).astype(dtype)
    converted = convert(rows)
    model = CompresSAETransformer(32, k=3, max_iter=5, random_state=0)
    codes = model.fit(converted).transform(converted)
    assert codes.dtype == expected
    assert (codes != model.fit(rows).transform(rows)).nnz == 0


@pytest.mark.parametrize("tensor", [torch.tensor(ROWS), torch.tensor(ROWS).half(), torch.tensor(ROWS).double()])
def test_tensors_are_taken_without_a_copy(model, tensor):
    assert np.shares_memory(model._check_rows(tensor, reset=False), tensor.numpy())


def test_names_of_frames_are_compared(model):
    fitted = CompresSAETransformer(32, k=3, max_iter=5, random_state=0).fit(as_polars(ROWS))
    assert fitted.feature_names_in_.tolist() == NAMES
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(as_polars(ROWS).rename({"x0": "y"}))


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor(ROWS).bfloat16(), torch.tensor(ROWS).requires_grad_(), torch.tensor(ROWS).to("meta")],
    ids=["bfloat16", "grad", "device"],
)
def test_tensors_that_numpy_cannot_read_are_refused(model, tensor):
    with pytest.raises(TypeError, match=r"^X must be .* got a Tensor .*\.cpu\(\), one of bfloat16 as .*\.float\(\)"):
        model.transform(tensor)


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_column_of_lists_is_refused_with_what_to_do(library):
    lists = ROWS.tolist()
    if library == "pandas":
        frame = pd.DataFrame({"embedding": lists})
    elif library == "polars":
        frame = pytest.importorskip("polars").DataFrame({"embedding": lists})
    else:
        frame = pytest.importorskip("pyarrow").table({"embedding": lists})
    with pytest.raises(ValueError, match=r"got a column of lists; .*np\.stack\(df\['embedding'\]\.to_numpy\(\)\)"):
        CompresSAETransformer(32, k=3).fit(frame)
    np.testing.assert_array_equal(np.stack(frame["embedding"].to_numpy()), ROWS)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (-np.inf, "infinity or a value too large for .*")])
def test_the_first_row_that_is_not_finite_is_named(model, value, words):
    rows = np.ones((BLOCK_ROWS * 3, 24), dtype=np.float32)
    assert len(list(row_blocks(len(rows), BLOCK_ROWS))) == 3
    rows[[BLOCK_ROWS + 5, BLOCK_ROWS + 8, 2 * BLOCK_ROWS]] = value
    with pytest.raises(ValueError, match=rf"^Input X contains {words}, first in row {BLOCK_ROWS + 5}\.$"):
        model.transform(rows)


@pytest.mark.parametrize("dtype", ["Float32", "float32[pyarrow]", "Float64", "float64[pyarrow]", "Int32"])
def test_codes_have_the_dtype_of_the_floats_of_pandas_and_arrow(model, dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    rows = (8 * ROWS).astype("int32" if dtype == "Int32" else "float64" if "64" in dtype else "float32")
    frame = pd.DataFrame(rows).astype(dtype)
    codes = model.transform(frame)
    assert codes.dtype == ("float32" if "loat32" in dtype else "float64")
    assert (codes != model.transform(rows)).nnz == 0


def test_a_frame_of_two_types_of_floats_is_read_as_the_wider(model):
    frame = pd.DataFrame(ROWS).astype({0: "Float64"} | dict.fromkeys(range(1, 24), "Float32"))
    assert model.transform(frame).dtype == "float64"


@pytest.mark.parametrize("dtype", ["Float32", "float32[pyarrow]", "Int32"])
def test_missing_values_of_pandas_are_refused_as_nan(model, dtype):
    if "pyarrow" in dtype:
        pytest.importorskip("pyarrow")
    frame = pd.DataFrame(np.ones_like(ROWS)).astype(dtype)
    frame.iloc[3, 2] = pd.NA
    with pytest.raises(ValueError, match=r"^Input X contains NaN, first in row 3\.$"):
        model.transform(frame)


@pytest.mark.parametrize("library", ["torch", "polars", "pandas"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reconstructions_have_the_dtype_of_the_codes_of_other_libraries(model, library, dtype):
    codes = model.transform(ROWS).toarray().astype(dtype)
    if library == "torch":
        converted = torch.tensor(codes)
    elif library == "polars":
        converted = pytest.importorskip("polars").DataFrame(codes)
    else:
        converted = pd.DataFrame(codes).astype(dtype.capitalize())
    found = model.inverse_transform(converted)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, model.inverse_transform(codes))


def test_codes_that_numpy_cannot_read_are_refused(model):
    with pytest.raises(TypeError, match=r"^X must be .* got a Tensor .*\.cpu\(\)"):
        model.inverse_transform(torch.ones((2, 32), device="meta"))


def series_of(library):
    rows = ROWS.tolist()
    if library == "polars":
        polars = pytest.importorskip("polars")
        return polars.Series(rows, dtype=polars.Array(polars.Float32, 24))
    if library == "pandas":
        return pd.Series(rows)
    pyarrow = pytest.importorskip("pyarrow")
    arrays = pyarrow.array(rows, pyarrow.list_(pyarrow.float32(), 24))
    return arrays if library == "pyarrow" else pd.Series(arrays, dtype=pd.ArrowDtype(arrays.type))


@pytest.mark.parametrize("library", ["polars", "pandas", "pyarrow", "pandas of pyarrow"])
@pytest.mark.parametrize("method", ["fit", "fit_transform", "partial_fit", "transform", "refit"])
def test_a_series_of_arrays_is_told_to_be_stacked(library, method):
    series = series_of(library)
    model = CompresSAETransformer(16, k=3, max_iter=5, random_state=0)
    if method in ("transform", "refit"):
        model.fit(ROWS[:, :12])
    before = dict(model.__dict__)
    with pytest.raises(ValueError, match=r"one column a feature, got a column of lists; stack them"):
        getattr(model, "fit" if method == "refit" else method)(series)
    assert model.__dict__ == before


def array_of_arrays():
    rows = np.empty(len(ROWS), object)  # what .to_numpy() of a column of embeddings is
    rows[:] = list(ROWS)
    return rows


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_an_array_of_arrays_is_told_to_be_stacked(model, shape):
    rows = array_of_arrays().reshape(shape)
    search = CodeNearestNeighbors(compressor=model).fit(model.transform(ROWS))
    for call in (CompresSAETransformer().fit, model.transform, model.transform_query, model.score, search.kneighbors):
        with pytest.raises(ValueError, match=r"^X must have one column a feature, got a column of lists; stack them"):
            call(rows)
    assert (model.transform(np.stack(array_of_arrays())) != model.transform(ROWS)).nnz == 0


def test_queries_that_are_a_series_of_arrays_are_told_to_be_stacked(model):
    search = CodeNearestNeighbors(compressor=model).fit(model.transform(ROWS))
    with pytest.raises(ValueError, match=r"^X must have one column a feature, got a column of lists; stack them"):
        search.kneighbors(series_of("pandas"))


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "inverse_transform"])
def test_a_lazy_frame_is_told_to_be_collected(method):
    lazy = as_polars(ROWS).lazy()
    model = CompresSAETransformer(32, k=3, max_iter=5, random_state=0).fit(ROWS)
    with pytest.raises(TypeError, match=r"^X must be an array.*, got a LazyFrame, .*: pass X\.collect\(\)\.$"):
        getattr(model, method)(lazy)
    assert model.fit(lazy.collect()).n_features_in_ == 24
