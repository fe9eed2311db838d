"""Record batches in, codes out: layouts, metadata, the way back, and what is refused."""

import json
import pickle
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from cli_cases import same_matrix
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context

from skcompressae import CompresSAETransformer
from skcompressae.arrow import ArrowEncoder, codes_from_arrow, decode_batch, encode_batch, output_schema
from skcompressae.exceptions import CodesFormatError
from skcompressae.persistence import load_model, model_hash

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def column_of(rows, kind="fixed", dtype=None):
    flat = pa.array(rows.reshape(-1), type=dtype)
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])
    offsets = np.arange(0, rows.size + 1, rows.shape[1])
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat)


def batch_of(rows, kind="fixed"):
    names = pa.array([f"row {i}" for i in range(len(rows))])
    return pa.record_batch({"name": names, "embedding": column_of(rows, kind), "size": pa.array(np.arange(len(rows)))})


def dense(codes):
    return codes.toarray()


@pytest.mark.parametrize("kind", ["fixed", "list", "large"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_codes_are_those_of_transform(fitted, embeddings, kind, dtype):
    rows = embeddings.astype(dtype)
    encoded = encode_batch(fitted, batch_of(rows, kind).slice(7, 100))
    assert encoded.schema.names == ["name", "size", "indices", "values"]
    assert encoded.column("name")[0].as_py() == "row 7"
    codes = codes_from_arrow(encoded)
    assert codes.dtype == np.float32
    np.testing.assert_allclose(dense(codes), dense(fitted.transform(rows[7:107])), rtol=1e-6)


def test_types_of_the_layouts(fitted, embeddings):
    batch = batch_of(embeddings)
    expected = fitted.transform(embeddings)

    def types(**options):
        encoded = encode_batch(fitted, batch, **options)
        assert encoded.schema.equals(output_schema(fitted, batch.schema, **options), check_metadata=True)
        encoded.validate(full=True)
        return {field.name: str(field.type) for field in list(encoded.schema)[2:]}, codes_from_arrow(encoded)

    for options, fields in (
        ({}, {"indices": "list<item: uint16>", "values": "list<item: float>"}),
        ({"layout": "int32"}, {"indices": "list<item: int32>", "values": "list<item: float>"}),
        ({"layout": "struct"}, {"code": "struct<indices: list<item: uint32>, values: list<item: float>>"}),
        ({"code_columns": ("i", "v")}, {"i": "list<item: uint16>", "v": "list<item: float>"}),
    ):
        found, codes = types(**options)
        assert found == fields
        assert (codes != expected).nnz == 0
    found, codes = types(value_type="float16")
    assert found["values"] == "list<item: halffloat>"
    np.testing.assert_allclose(dense(codes), dense(expected), rtol=2**-11)
    for layout in ("compact", "struct"):
        found, codes = types(layout=layout, split_signs=True)
        assert (codes != expected).nnz == 0
    assert types(keep_embedding=True)[0].keys() == {"size", "indices", "values"}


def test_indices_widen_beyond_uint16(embeddings, fitted):
    wide = pickle.loads(pickle.dumps(fitted))
    n_components = 65_537
    for name in ("components_", "encoder_weights_", "encoder_bias_"):
        array = getattr(fitted, name)
        grown = np.zeros((n_components, *array.shape[1:]), np.float32)
        grown[-len(array) :] = array
        setattr(wide, name, grown)
    wide.set_params(n_components=n_components)
    encoded = encode_batch(wide, batch_of(embeddings[:20]))
    assert encoded.schema.field("indices").type == pa.list_(pa.int32())
    codes = codes_from_arrow(encoded)
    np.testing.assert_allclose(
        dense(codes[:, -fitted.n_components :]), dense(fitted.transform(embeddings[:20])), rtol=1e-5, atol=1e-6
    )


def test_metadata_and_the_way_back_through_parquet(fitted, embeddings, tmp_path):
    encoder = pickle.loads(pickle.dumps(ArrowEncoder(fitted)))
    table = encoder(pa.Table.from_batches([batch_of(embeddings[:150]), batch_of(embeddings[150:])]))
    assert table.column("indices").num_chunks == 2
    meta = table.schema.metadata[b"skcompressae.codes"].decode()
    assert f'"model_hash": "{model_hash(fitted)}"' in meta
    assert '"n_components": 48, "k": 6, "norm": "input"' in meta
    pq.write_table(table, tmp_path / "codes.parquet", row_group_size=70)
    again = pq.read_table(tmp_path / "codes.parquet")
    assert (codes_from_arrow(again) != fitted.transform(embeddings)).nnz == 0
    decoded = decode_batch(fitted, again)
    assert decoded.schema.names == ["name", "size", "embedding"]
    x_hat = np.stack(decoded.column("embedding").to_pylist())
    np.testing.assert_allclose(x_hat, fitted.inverse_transform(fitted.transform(embeddings)), rtol=1e-5, atol=1e-6)
    assert (codes_from_arrow(encoder(decoded)).shape) == (len(embeddings), 48)


def test_an_encoder_keeps_its_parameters(fitted, embeddings):
    model = pickle.loads(pickle.dumps(fitted)).set_params(k=3, sparse_output=False)
    model.set_output(transform="pandas")
    encoder = ArrowEncoder(model)
    model.set_params(k=5)
    codes = codes_from_arrow(encoder(batch_of(embeddings)))
    assert codes.nnz == 3 * len(embeddings)
    with pytest.raises(ValueError, match="were made by a model of hash"):
        decode_batch(model, encoder(batch_of(embeddings)))


def test_no_rows(fitted, embeddings):
    encoded = encode_batch(fitted, batch_of(embeddings).slice(0, 0))
    assert encoded.num_rows == 0
    assert encoded.schema.names == ["name", "size", "indices", "values"]
    assert codes_from_arrow(encoded).shape == (0, 48)
    assert decode_batch(fitted, encoded).num_rows == 0


def changed(embeddings, kind, row, value):
    lists = [list(map(float, row)) for row in embeddings[:9]]
    if value == "short":
        lists[row] = lists[row][:-1]
    elif value is None and kind == "row":
        lists[row] = None
    else:
        lists[row][3] = value
    return pa.record_batch({"embedding": pa.array(lists, pa.list_(pa.float32()))})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("row", None, "'embedding' holds 1 nulls, the first in row 4"),
        ("item", None, "'embedding' holds 1 nulls within embeddings, the first in row 4"),
        ("row", "short", "the model's 24 features in every row; got 23 in row 4"),
        ("item", float("nan"), r"'embedding' holds NaN or infinity in 1 row\(s\), the first of them row 4"),
        ("item", float("inf"), r"'embedding' holds NaN or infinity in 1 row\(s\), the first of them row 4"),
    ],
)
def test_bad_embeddings_are_named(fitted, embeddings, kind, value, message):
    with pytest.raises(ValueError, match=message):
        encode_batch(fitted, changed(embeddings, kind, 4, value))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("row", None, "1 nulls, the first in row 22"),
        ("row", "short", "got 23 in row 22"),
        ("item", None, "1 nulls within embeddings, the first in row 22"),
        ("item", float("nan"), r"NaN or infinity in 1 row\(s\), the first of them row 22"),
    ],
)
def test_rows_of_a_table_are_numbered_through(fitted, embeddings, kind, value, message):
    table = pa.Table.from_batches([changed(embeddings, "item", 0, 1.0)] * 2 + [changed(embeddings, kind, 4, value)])
    with pytest.raises(ValueError, match=message):
        encode_batch(fitted, table)


def test_a_code_too_small_for_float16_is_numbered_through(fitted, embeddings):
    rows = np.where(np.arange(400)[:, None] == 254, embeddings * np.float32(1e-9), embeddings)
    table = pa.Table.from_batches([batch_of(rows[:250]), batch_of(rows[250:])])
    with pytest.raises(ValueError, match=r"the code of row 254 has no value above .*, too small for float16"):
        encode_batch(fitted, table, value_type="float16")


def test_an_embedding_column_named_as_a_column_of_codes(fitted, embeddings):
    batch = batch_of(embeddings).rename_columns(["name", "values", "size"])
    encoded = encode_batch(fitted, batch, "values")
    assert encoded.schema.names == ["name", "size", "indices", "values"]
    np.testing.assert_allclose(dense(codes_from_arrow(encoded)), dense(fitted.transform(embeddings)), rtol=1e-6)
    again = encode_batch(fitted, batch_of(embeddings), layout="struct", code_columns=("embedding",))
    assert again.schema.names == ["name", "size", "embedding"]


def test_kept_columns_of_one_name(fitted, embeddings):
    batch = batch_of(embeddings).rename_columns(["a", "embedding", "a"])
    decoded = decode_batch(fitted, encode_batch(fitted, batch))
    assert decoded.schema.names == ["a", "a", "embedding"]
    assert decoded.column(0).to_pylist()[3] == "row 3"
    assert decoded.column(1).to_pylist()[3] == 3


def test_parameters_that_a_grid_search_left(fitted, embeddings, tmp_path):
    model = deepcopy(fitted).set_params(k=np.int64(6), flattening=np.float32(0.25))
    assert json.loads(ArrowEncoder(model).metadata[b"skcompressae.codes"])["k"] == 6
    model.save(tmp_path / "model")
    assert load_model(tmp_path / "model").flattening == 0.25


def test_the_global_output_setting_is_not_for_workers(fitted, embeddings):
    pytest.importorskip("pandas")
    with config_context(transform_output="pandas"):
        encoded = encode_batch(fitted, batch_of(embeddings))
    np.testing.assert_allclose(dense(codes_from_arrow(encoded)), dense(fitted.transform(embeddings)), rtol=1e-6)


def test_bad_arguments_are_named(fitted, embeddings):
    batch = batch_of(embeddings)
    with pytest.raises(ValueError, match="the model's 24 features; got lists of 23"):
        encode_batch(fitted, batch_of(np.ascontiguousarray(embeddings[:, :-1])))
    with pytest.raises(TypeError, match=r"must hold lists of float16, float32 or float64.* got list<item: int64>"):
        encode_batch(fitted, pa.record_batch({"embedding": pa.array([[1, 2]])}))
    with pytest.raises(KeyError, match="column='vector' is not among the columns 'name', 'embedding', 'size'"):
        encode_batch(fitted, batch, "vector")
    with pytest.raises(TypeError, match=r"batch must be a pyarrow.RecordBatch or Table; got dict"):
        encode_batch(fitted, {})
    with pytest.raises(TypeError, match=r"batch must be a pyarrow.RecordBatch or Table; got dict"):
        decode_batch(fitted, {})
    with pytest.raises(TypeError, match="model must be a CompresSAETransformer; got str"):
        encode_batch("model", batch)
    with pytest.raises(ValueError, match=r"column\(s\) 'size' are there already"):
        encode_batch(fitted, batch, code_columns=("size", "values"))
    with pytest.raises(ValueError, match="layout must be one of 'compact', 'int32', 'struct'; got 'list'"):
        encode_batch(fitted, batch, layout="list")
    with pytest.raises(ValueError, match="value_type='float16' needs layout='compact'"):
        encode_batch(fitted, batch, layout="int32", value_type="float16")
    with pytest.raises(ValueError, match="value_type must be 'float32' or 'float16'; got 'int8'"):
        encode_batch(fitted, batch, value_type="int8")
    with pytest.raises(ValueError, match="code_columns must be 2 different name"):
        encode_batch(fitted, batch, code_columns=("code",))
    with pytest.raises(ValueError, match="beyond float16; scale the embeddings down"):
        encode_batch(fitted, batch_of(embeddings * 1e5), value_type="float16")
    with pytest.raises(ValueError, match="too small for float16; scale the embeddings up"):
        encode_batch(fitted, batch_of(embeddings * 1e-7), value_type="float16")


def test_values_that_vanish_in_float16_are_left_out(fitted):
    codes = np.zeros((3, 48), np.float32)
    codes[0, [2, 7, 40]] = 1, 1e-9, -2
    codes[2, [1, 3]] = 5e-8, 0.5
    indices, values = ArrowEncoder(fitted, value_type="float16").code_arrays(sp.csr_array(codes))
    assert indices.to_pylist() == [[2, 40], [], [1, 3]]
    assert values.to_pylist() == [[1, -2], [], [2.0**-24, 0.5]]


def test_codes_of_other_formats_and_widths_are_refused(fitted):
    encoder = ArrowEncoder(fitted, split_signs=True)
    with pytest.raises(TypeError, match=r"codes must be a CSR matrix; got csc_array\. Convert sparse ones by tocsr"):
        encoder.code_arrays(sp.csc_array(np.eye(3, 48)))
    with pytest.raises(TypeError, match="codes must be a CSR matrix; got ndarray"):
        encoder.code_arrays(np.eye(3, 48))
    with pytest.raises(ValueError, match="codes must have the model's n_components=48 columns; got 96"):
        encoder.code_arrays(sp.csr_array(np.eye(3, 96)))


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([[0, 48]], [[1.0, 2.0]], r"must lie within \[0, 48\); got 0 to 48"),
        ([[-1]], [[1.0]], r"must lie within \[0, 48\); got -1 to -1"),
        ([[2, 2]], [[1.0, 2.0]], "repeats an index"),
        ([[1]], [[float("nan")]], "NaN or infinity"),
        ([[1, 2]], [[1.0]], "lists of different lengths"),
        ([None], [None], "holds nulls"),
        ([[None]], [[1.0]], "holds nulls"),
    ],
)
def test_damaged_codes_are_refused(indices, values, message):
    batch = pa.record_batch(
        {"indices": pa.array(indices, pa.list_(pa.int32())), "values": pa.array(values, pa.list_(pa.float32()))}
    )
    with pytest.raises(CodesFormatError, match=message):
        codes_from_arrow(batch, n_components=48)


def test_codes_without_their_metadata(fitted, embeddings):
    encoded = encode_batch(fitted, batch_of(embeddings))
    bare = encoded.replace_schema_metadata({})
    with pytest.raises(CodesFormatError, match=r"n_components must be a positive int .* got None"):
        codes_from_arrow(bare)
    assert (codes_from_arrow(bare, n_components=48) != codes_from_arrow(encoded)).nnz == 0
    assert decode_batch(fitted, bare).num_columns == 3
    with pytest.raises(CodesFormatError, match=r"column\(s\) 'code' are missing"):
        codes_from_arrow(encoded, code_columns=("code",))
    with pytest.raises(CodesFormatError, match="'name' must be a struct of 'indices' and 'values'"):
        codes_from_arrow(encoded, code_columns=("name",), n_components=48)
    for text in (b"{", b"[]1", b'{"version": 2}', b"[1]", b'{"version": 1, "columns": 3}'):
        with pytest.raises(CodesFormatError, match=r"metadata|version"):
            codes_from_arrow(encoded.replace_schema_metadata({b"skcompressae.codes": text}))
    wide = {b"skcompressae.codes": b'{"version": 1, "n_components": %d}' % 2**70}
    with pytest.raises(CodesFormatError, match=f"tells n_components={2**70}, expected a positive int below"):
        codes_from_arrow(encoded.replace_schema_metadata(wide))
    with pytest.raises(CodesFormatError, match=f"must be a positive int below .* got {2**70}"):
        codes_from_arrow(bare, n_components=2**70)


def test_packed_tables_tell_their_width(fitted, embeddings):
    packed = fitted.transform_packed(embeddings)
    table = packed.to_arrow()
    codes = codes_from_arrow(table)
    assert codes.shape == (400, 48)
    assert (codes != packed.to_csr()).nnz == 0
    decoded = decode_batch(fitted, table)
    assert decoded.schema.metadata is None
    np.testing.assert_array_equal(np.stack(decoded.column("embedding").to_pylist()), fitted.inverse_transform(packed))
    wider = CompresSAETransformer(n_components=96, k=6, max_iter=2, random_state=0).fit(embeddings)
    with pytest.raises(ValueError, match="X has 48 columns, but the codes of this CompresSAETransformer have n_comp"):
        decode_batch(wider, table)


lists_of_codes = st.lists(
    st.dictionaries(st.integers(0, 47), st.floats(-100, 100, width=32).filter(bool), max_size=6), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(rows=lists_of_codes, start=st.integers(0, 4))
def test_reading_agrees_with_the_lists(rows, start):
    batch = pa.record_batch(
        {
            "indices": pa.array([list(row) for row in rows], pa.list_(pa.uint16())),
            "values": pa.array([list(row.values()) for row in rows], pa.list_(pa.float32())),
        }
    ).slice(start)
    codes = codes_from_arrow(batch, n_components=48)
    expected = np.zeros((max(0, len(rows) - start), 48), np.float32)
    for i, row in enumerate(rows[start:]):
        for column, value in row.items():
            expected[i, column] = value
    assert codes.has_canonical_format
    np.testing.assert_array_equal(dense(codes), expected)


# Golden files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["compact", "struct"])
def test_golden_files_of_version_1(layout):
    data = Path(__file__).parent / "data"
    model, expected = load_model(data / "model_v1.safetensors"), json.loads((data / "model_v1.json").read_text())
    table = pq.read_table(data / f"codes_v1_{layout}.parquet")
    meta = json.loads(table.schema.metadata[b"skcompressae.codes"])
    assert (meta["version"], meta["model_hash"], meta["split_signs"]) == (1, model_hash(model), layout == "struct")
    np.testing.assert_allclose(dense(codes_from_arrow(table)), expected["codes"], rtol=1e-5)
    decoded = np.stack(decode_batch(model, table).column("embedding").to_pylist())
    np.testing.assert_allclose(decoded, model.inverse_transform(np.array(expected["codes"])), rtol=1e-4, atol=1e-6)


def test_metadata_of_the_table_stays_and_that_of_codes_goes(fitted, embeddings):
    spark = b"org.apache.spark.sql.parquet.row.metadata"
    batch = batch_of(embeddings[:5]).replace_schema_metadata({b"owner": b"me"})
    encoded = encode_batch(fitted, batch)
    assert encoded.schema.metadata[b"owner"] == b"me"
    again = encoded.replace_schema_metadata({**encoded.schema.metadata, spark: b"{}"})
    assert decode_batch(fitted, again).schema.metadata == {b"owner": b"me"}


def test_codes_of_doubles_and_zeros():
    batch = pa.record_batch({"indices": pa.array([[0, 2]]), "values": pa.array([[0.0, 0.1]])})
    codes = codes_from_arrow(batch, n_components=3)
    assert codes.nnz == 1
    assert codes.dtype == np.float64
    assert codes.data[0] == 0.1


def test_columns_of_other_engines(fitted, embeddings):
    expected = fitted.transform(embeddings)
    column = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (24,)), column_of(embeddings))
    encoded = encode_batch(fitted, pa.record_batch({"embedding": column}))
    same_matrix(codes_from_arrow(encoded), expected)
    table = pa.Table.from_batches([encoded])
    wide = table.cast(pa.schema([("indices", pa.large_list(pa.int64())), ("values", pa.large_list(pa.float32()))]))
    same_matrix(codes_from_arrow(wide, n_components=48), expected)


def test_columns_encoded_before_others_are_not_read_by_the_metadata_of_those(fitted, embeddings):
    smaller = CompresSAETransformer(n_components=32, k=3, max_iter=2, random_state=0, device="cpu").fit(embeddings)
    batch = batch_of(embeddings[:5]).append_column("body", column_of(embeddings[:5]))
    names = ("ti", "tv")
    once = encode_batch(smaller, batch, "body", code_columns=names)
    twice = encode_batch(fitted, once)
    same_matrix(codes_from_arrow(twice), fitted.transform(embeddings[:5]))
    with pytest.raises(CodesFormatError, match="does not tell it of these columns"):
        codes_from_arrow(twice, code_columns=names)
    same_matrix(codes_from_arrow(twice, code_columns=names, n_components=32), smaller.transform(embeddings[:5]))
