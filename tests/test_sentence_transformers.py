"""A SparseEncoder of sentence-transformers with a compressor at its end: from text to the codes of transform."""

import copy
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from sklearn.exceptions import NotFittedError

from skcompressae import CompresSAETransformer, model_hash
from skcompressae.exceptions import ModelFormatError

sentence_transformers = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")

from skcompressae.sentence_transformers import CompresSAEModule  # noqa: E402

if hasattr(sentence_transformers, "base"):
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
else:
    from sentence_transformers.models import Pooling, Transformer

# what torch says when sentence-transformers makes and multiplies sparse tensors
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state"),
]

CODINGS = ["activations", "least_squares", "pursuit", "refined_pursuit"]
WORDS = ["a", "the", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "red", "blue", "big", "small", "fast"]
# empty, blank, unknown words only, longer than the model reads
TEXTS = ["the cat sat on the mat", "", "   ", "dog", "qqq zzz", "a big red dog ran " * 20, "the cat sat on the mat"]
RUN_ELSEWHERE = """
import sys
import numpy as np
import skcompressae
skcompressae.CompresSAETransformer, skcompressae.CodeNearestNeighbors, skcompressae.model_hash
print([name for name in ("sentence_transformers", "transformers", "onnx") if name in sys.modules])
from sentence_transformers import SparseEncoder
encoder = SparseEncoder(sys.argv[1], trust_remote_code=True, device="cpu")
np.save(sys.argv[2], encoder.encode(sys.argv[3:], convert_to_sparse_tensor=False).numpy())
print(encoder.similarity_fn_name, type(encoder[-1]).__module__)
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of random weights that knows 15 words."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    transformers.BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dense(bert):
    return sentence_transformers.SentenceTransformer(modules=[Transformer(bert), Pooling(16)], device="cpu")


@pytest.fixture(scope="module")
def compressor(dense):
    random_state = np.random.RandomState(0)
    texts = [" ".join(random_state.choice(WORDS, random_state.randint(1, 9))) for _ in range(300)]
    model = CompresSAETransformer(24, k=4, max_iter=60, random_state=0, device="cpu")
    return model.fit(dense.encode(texts, show_progress_bar=False))


@pytest.fixture(scope="module")
def encoder(dense, compressor):
    modules = [*dense, CompresSAEModule.from_compressor(compressor)]
    return sentence_transformers.SparseEncoder(modules=modules, similarity_fn_name="cosine", device="cpu")


def altered(model, **parameters):
    """The same weights with other parameters."""
    return copy.copy(model).set_params(**parameters)


def codes_of(module, rows, **options):
    return module({"sentence_embedding": torch.as_tensor(rows)}, **options)["sentence_embedding"]


def assert_close(codes, expected, rtol=1e-4):
    expected = expected.toarray()
    codes = codes.float().cpu().numpy()
    np.testing.assert_array_equal(codes != 0, expected != 0)
    np.testing.assert_allclose(codes, expected, rtol=0, atol=rtol * abs(expected).max())


@pytest.mark.parametrize("norm", ["input", "unit", None])
@pytest.mark.parametrize("coding", CODINGS)
def test_codes_are_those_of_transform(fitted, device, coding, norm):
    rows = np.vstack([make_embeddings(60, seed=5), np.zeros((2, 24), np.float32)])
    model = altered(fitted, coding=coding, norm=norm)
    module = CompresSAEModule.from_compressor(model).to(device)
    on_device = torch.from_numpy(rows).to(device)
    codes = codes_of(module, on_device)
    assert_close(codes, model.transform(rows))
    assert not codes[-2:].any()
    assert codes_of(module, on_device[:0]).shape == (0, 48)
    # fewer nonzeros are fitted anew, not cut off
    assert_close(codes_of(module, on_device, max_active_dims=3), altered(model, k=3).transform(rows))
    with pytest.raises(ValueError, match="a code must have at least 1 nonzero; got 0"):
        codes_of(module, on_device, max_active_dims=0)
    assert module.model_hash == model_hash(model)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_mean_latent_is_scaled_as_transform_does(tmp_path, device, coding):
    rows = make_embeddings(300) + np.float32(1.5)
    model = CompresSAETransformer(48, k=5, max_iter=30, coding=coding, random_state=0).fit(rows)
    assert model.has_mean_latent_
    module = CompresSAEModule.from_compressor(model)
    assert module.keeps_mean == (coding != "activations")
    module.save(str(tmp_path))
    again = CompresSAEModule.load(str(tmp_path), local_files_only=True).to(device)
    assert again.model_hash == model_hash(model)
    assert_close(codes_of(again, torch.from_numpy(rows).to(device)), model.transform(rows))


def test_a_folder_that_does_not_know_the_mean_scales_all_latents_alike(fitted, tmp_path):
    module = CompresSAEModule.from_compressor(fitted)
    module.save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["keeps_mean"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not CompresSAEModule.load(str(tmp_path), local_files_only=True).keeps_mean


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_rows_of_any_scale_are_encoded(fitted, coding, scale):
    model = altered(fitted, coding=coding)
    rows = (scale * make_embeddings(20, seed=6)).astype(np.float32)
    assert_close(codes_of(CompresSAEModule.from_compressor(model), rows), model.transform(rows))


@pytest.mark.parametrize("coding", CODINGS)
def test_codes_of_every_latent_decode_alike(fitted, coding):
    """With more latents than features, values are anybody's guess, but what they decode to is not."""
    model = altered(fitted, coding=coding, k=48)
    rows = make_embeddings(20, seed=7)
    codes = codes_of(CompresSAEModule.from_compressor(model), rows).numpy()
    expected = model.inverse_transform(model.transform(rows))
    np.testing.assert_allclose(model.inverse_transform(codes), expected, rtol=0, atol=1e-4 * abs(expected).max())


def test_weights_stay_as_they_are_in_models_of_less_precision(fitted):
    module = CompresSAEModule.from_compressor(fitted).to(torch.bfloat16).half()
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert module.model_hash == model_hash(fitted)
    rows = torch.from_numpy(make_embeddings(30, seed=8)).to(torch.bfloat16)
    codes = codes_of(module, rows)
    assert codes.dtype == torch.float32
    assert_close(codes, fitted.transform(rows.float().numpy()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(codes_of(module, rows), codes)


@pytest.mark.parametrize("coding", CODINGS)
def test_training_changes_what_comes_before_and_not_the_weights(fitted, coding):
    module = CompresSAEModule.from_compressor(altered(fitted, coding=coding, norm="unit"))
    assert not list(module.parameters())
    rows = torch.from_numpy(make_embeddings(10, seed=9)).requires_grad_()
    codes = codes_of(module, rows)
    (codes * torch.arange(48)).sum().backward()
    assert torch.isfinite(rows.grad).all()
    # the direction decides a code of norm "unit", so its gradient is at right angles to the row
    assert (rows.grad.norm(dim=1) > 1e-3).all()
    angles = torch.nn.functional.cosine_similarity(rows.grad, rows.detach())
    assert angles.abs().max() < 1e-3


def test_text_becomes_codes(encoder, dense, compressor):
    expected = compressor.transform(dense.encode(TEXTS, show_progress_bar=False))
    codes = encoder.encode(TEXTS)
    assert codes.is_sparse
    assert codes.shape == (len(TEXTS), 24)
    assert_close(codes.to_dense(), expected)
    assert_close(encoder.encode(TEXTS, batch_size=2, convert_to_sparse_tensor=False), expected)
    assert_close(encoder.encode_document(TEXTS).to_dense(), expected)
    assert_close(encoder.encode_query(TEXTS[3]).to_dense()[None], expected[3:4])
    fewer = altered(compressor, k=2).transform(dense.encode(TEXTS, show_progress_bar=False))
    assert_close(encoder.encode(TEXTS, max_active_dims=2).to_dense(), fewer)
    assert encoder.encode([]).shape == (0,)
    dimension = getattr(encoder, "get_embedding_dimension", None) or encoder.get_sentence_embedding_dimension
    assert dimension() == 24
    assert "k=4, coding='pursuit', norm='input'" in repr(encoder)


def test_similarity_is_that_of_codes(encoder):
    codes = encoder.encode(TEXTS)
    dense_codes = codes.to_dense().numpy().astype(np.float64)
    unit = dense_codes / np.linalg.norm(dense_codes, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.similarity(codes, codes).numpy(), unit @ unit.T, atol=1e-5)


def test_a_saved_model_is_the_same_in_another_process(encoder, tmp_path):
    folder, found = tmp_path / "model", tmp_path / "codes.npy"
    encoder.save(str(folder))
    types = [entry["type"] for entry in json.loads((folder / "modules.json").read_text(encoding="utf-8"))]
    assert types[-1] == "skcompressae.sentence_transformers.CompresSAEModule"
    assert (folder / "2_CompresSAEModule" / "model.safetensors").exists()
    command = [sys.executable, "-c", RUN_ELSEWHERE, str(folder), str(found), *TEXTS]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == ["[]", "cosine skcompressae.sentence_transformers"]
    np.testing.assert_allclose(np.load(found), encoder.encode(TEXTS).to_dense().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_a_module_comes_back_from_its_folder(fitted, tmp_path, safe_serialization):
    module = CompresSAEModule.from_compressor(altered(fitted, coding="pursuit", norm=None, precision="bfloat16"))
    module.save(str(tmp_path), safe_serialization=safe_serialization)
    again = CompresSAEModule.load(str(tmp_path), local_files_only=True)
    assert again.get_config_dict() == module.get_config_dict()
    assert again.model_hash == model_hash(altered(fitted, coding="pursuit", norm=None))
    rows = make_embeddings(20, seed=9)
    torch.testing.assert_close(codes_of(again, rows), codes_of(module, rows), rtol=0, atol=0)


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_a_later_save_leaves_nothing_of_an_earlier_one(fitted, tmp_path, safe_serialization):
    earlier = copy.copy(fitted)
    earlier.encoder_bias_ = fitted.encoder_bias_ + 1
    CompresSAEModule.from_compressor(earlier).save(str(tmp_path), safe_serialization=not safe_serialization)
    module = CompresSAEModule.from_compressor(fitted)
    module.save(str(tmp_path), safe_serialization=safe_serialization)
    weights = "model.safetensors" if safe_serialization else "pytorch_model.bin"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", weights]
    assert CompresSAEModule.load(str(tmp_path), local_files_only=True).model_hash == module.model_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, "is damaged: weights and settings do not have the hash"),
        ({"format_version": 2}, "has format version 2, and this skcompressae reads versions up to 1"),
        ({"format_version": "1"}, "is damaged: its format version is '1'"),
        ({"format": None}, "holds no CompresSAEModule: the format in its config.json is None"),
        ({"norm": ...}, "is damaged: 'norm' is missing"),
    ],
)
def test_damaged_and_foreign_folders_are_refused(fitted, tmp_path, change, message):
    CompresSAEModule.from_compressor(fitted).save(str(tmp_path))
    path = tmp_path / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **change}
    config = {name: value for name, value in config.items() if value is not ...}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelFormatError, match=message):
        CompresSAEModule.load(str(tmp_path), local_files_only=True)


@pytest.mark.parametrize("is_cut", [True, False])
def test_damaged_weights_are_refused(fitted, tmp_path, is_cut):
    CompresSAEModule.from_compressor(fitted).save(str(tmp_path))
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of the last number of the last array
    path.write_bytes(content[:-1] if is_cut else content)
    with pytest.raises(ModelFormatError, match="is damaged: "):
        CompresSAEModule.load(str(tmp_path), local_files_only=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"format": "skcomp', "is damaged: its config.json cannot be read"),
        ("config.json", b"\xff\xfe", "is damaged: its config.json cannot be read"),
        ("config.json", b"[]", "holds no CompresSAEModule: its config.json is a list"),
        ("config.json", None, "holds no CompresSAEModule: the format in its config.json is None"),
        ("model.safetensors", b"", "is damaged: its weights cannot be read"),
        ("model.safetensors", None, "is damaged: its weights cannot be read .Could not find 'model.safetensors' or"),
    ],
)
def test_folders_with_files_that_are_none_are_refused(fitted, tmp_path, name, content, message):
    CompresSAEModule.from_compressor(fitted).save(str(tmp_path))
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        CompresSAEModule.load(str(tmp_path), local_files_only=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: b"garbage", r"is damaged: its weights cannot be read \(PyTorch refuses it\)\.$"),
        (lambda state: [1], "is damaged: its weights are a list"),
        (lambda state: {"encoder_weights": 1}, "encoder_weights must be a dense tensor of floating .* got a int"),
        (lambda state: {"encoder_weights": state["encoder_weights"]}, "is damaged: 'encoder_bias' is missing"),
        (lambda state: {**state, "encoder_bias": torch.zeros(1).expand(48)}, "does not hold as many numbers"),
        (lambda state: {**state, "encoder_bias": state["encoder_bias"] + 1}, "do not have the hash"),
    ],
)
def test_damaged_state_dicts_are_refused(fitted, tmp_path, change, message):
    module = CompresSAEModule.from_compressor(fitted)
    module.save(str(tmp_path), safe_serialization=False)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="is damaged: its weights cannot be read"):
        CompresSAEModule.load(str(tmp_path), local_files_only=True)
    content = change(module.state_dict())
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelFormatError, match=message):
        CompresSAEModule.load(str(tmp_path), local_files_only=True)


def test_what_does_not_fit_is_refused(fitted):
    module = CompresSAEModule.from_compressor(fitted)
    with pytest.raises(ValueError, match=r"must have a 'sentence_embedding'; got token_embeddings\. Put"):
        module({"token_embeddings": torch.zeros(1, 3, 24)})
    with pytest.raises(ValueError, match=r"must have n_features=24 columns.*got 16"):
        codes_of(module, np.zeros((3, 16), np.float32))
    for shape in ((24,), (1, 3, 24)):
        with pytest.raises(ValueError, match=rf"must have shape \(batch, n_features=24\); got {re.escape(str(shape))}"):
            module({"sentence_embedding": torch.zeros(shape)})
    with pytest.raises(ValueError, match=r"must be finite in float32, .* got float64 numbers up to 1e\+60"):
        module({"sentence_embedding": torch.full((1, 24), -1e60, dtype=torch.float64)})
    with pytest.raises(TypeError, match=r"max_active_dims must be an instance of int, not float"):
        module({"sentence_embedding": torch.zeros(1, 24)}, max_active_dims=2.0)
    with pytest.raises(TypeError, match="must be a CompresSAETransformer; got dict"):
        CompresSAEModule.from_compressor({})
    with pytest.warns(UserWarning, match="k=49 is above n_components=48"):
        assert CompresSAEModule.from_compressor(altered(fitted, k=49)).k == 48
    with pytest.raises(NotFittedError):
        CompresSAEModule.from_compressor(CompresSAETransformer())
    with pytest.raises(ValueError, match="The 'norm' parameter"):
        CompresSAEModule.from_compressor(altered(fitted, norm="l1"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "skcompressae.sentence_transformers")
    with pytest.raises(ImportError, match=r"install the extra 'sentence-transformers' of skcompressae"):
        importlib.import_module("skcompressae.sentence_transformers")
