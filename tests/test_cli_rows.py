"""Which row the command line names in its errors: that of the file, in whatever block or sample it was read."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from cli_cases import refuses

from skcompressae._cli import _export
from skcompressae.packed import _quantizer


@pytest.fixture
def small_export_blocks(monkeypatch):
    monkeypatch.setattr(_export, "_BLOCK_ROWS", 100)


def codes_with(value, dtype, row=170):
    codes = np.zeros((200, 48), dtype)
    codes[:, 3] = 1
    codes[row, 3] = value
    return sp.csr_matrix(codes)


def test_a_code_that_cannot_be_packed(files, small_export_blocks, capsys):
    sp.save_npz("codes.npz", codes_with(1e35, np.float32))
    message = refuses(capsys, "export", "codes.npz", "codes.skc", "-q")
    assert message == (
        "codes.npz: codes have a largest magnitude outside [2**-100, 2**100]; rescale them, or encode at "
        "norm='unit' (row 70: 1e+35), counted from row 100"
    )


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_a_code_beyond_float32(files, small_export_blocks, capsys, value):
    sp.save_npz("codes.npz", codes_with(value, np.float64))
    message = refuses(capsys, "export", "codes.npz", "codes.skc", "-q")
    assert message == "codes.npz: row 170 has a value of magnitude 1e+300, beyond float32"


def test_a_code_that_vanishes_in_float32(files, small_export_blocks, capsys):
    sp.save_npz("codes.npz", codes_with(1e-42, np.float64))
    message = refuses(capsys, "export", "codes.npz", "codes.parquet", "-q")
    assert message.startswith("the code of row 170 has no value above 1e-42, too small for float32")


def test_an_embedding_of_another_length(files, small_blocks, embeddings, capsys):
    rows = list(embeddings)
    rows[250] = rows[250][:5]
    pq.write_table(pa.table({"vector": pa.array(rows)}), "ragged.parquet")
    for command in (
        ["fit", "ragged.parquet", "new.safetensors"],
        ["encode", "model.safetensors", "ragged.parquet", "c.npz"],
    ):
        message = refuses(capsys, *command, "-q")
        assert message.endswith("must have the first row's 24 features in every row; got 5 in row 250.")


def test_a_code_that_vanishes_in_float16(files, embeddings, capsys, monkeypatch):
    from skcompressae._cli import _sinks

    monkeypatch.setattr(_sinks, "_GROUP_ROWS", 100)
    rows = embeddings.copy()
    rows[250] *= np.float32(1e-9)
    np.save("small.npy", rows)
    message = refuses(
        capsys, "encode", "model.safetensors", "small.npy", "codes.parquet", "-q", "--value-type", "float16"
    )
    assert message.startswith("the code of row 250 has no value above ")


def test_nan_in_the_sample_that_teaches_a_quantiser(files, embeddings, capsys, monkeypatch):
    monkeypatch.setattr(_quantizer, "_SAMPLE_ROWS", 4)
    rows = embeddings.copy()
    rows[266, 3] = np.nan  # the third of the rows 0, 133, 266, 399
    np.save("bad.npy", rows)
    message = refuses(capsys, "encode", "model.safetensors", "bad.npy", "codes.skc", "-q")
    assert message == "bad.npy must hold finite numbers; row 266 has NaN or infinity"
