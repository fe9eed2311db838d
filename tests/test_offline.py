"""No network: fitting, encoding, files, search, packed codes and the command line open no connection."""

import sys

import numpy as np
import pytest
from conftest import make_embeddings

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae._cli._main import main

_EVENTS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"}
# an audit hook stays until the process ends, so it only acts where a test asks it to
_watch = {"is_installed": False, "is_on": False}


def _refuse(event, arguments):
    if _watch["is_on"] and event in _EVENTS:
        raise AssertionError(f"{event} {arguments!r}")


@pytest.fixture
def no_network():
    if not _watch["is_installed"]:
        sys.addaudithook(_refuse)
        _watch["is_installed"] = True
    _watch["is_on"] = True
    yield
    _watch["is_on"] = False


def test_the_hook_sees_a_connection(no_network):
    import socket

    with pytest.raises(AssertionError, match=r"socket\.getaddrinfo|socket\.connect"):
        socket.create_connection(("localhost", 9), timeout=1)


def test_the_estimators_are_offline(no_network, tmp_path):
    X = make_embeddings(200)
    model = CompresSAETransformer(n_components=32, k=4, max_iter=5, random_state=0).fit(X)
    model.partial_fit(X)
    model.save(tmp_path / "model.safetensors")
    model = CompresSAETransformer.load(tmp_path / "model.safetensors")
    index = CodeNearestNeighbors(3, compressor=model).fit(model.transform_packed(X))
    index.save(tmp_path / "codes.index")
    assert CodeNearestNeighbors.load(tmp_path / "codes.index").kneighbors(X)[1].shape == (200, 3)
    assert np.isfinite(model.inverse_transform(model.transform(X))).all()


def test_the_command_line_is_offline(no_network, files):
    fit = ["fit", "x.parquet", "new.safetensors", "--n-components", "32", "--k", "4", "--max-iter", "5", "-q"]
    for command in (
        fit,
        ["encode", "model.safetensors", "x.parquet", "codes.parquet", "-q"],
        ["encode", "model.safetensors", "x.npy", "codes.skc", "-q"],
        ["decode", "model.safetensors", "codes.parquet", "back.npy", "-q"],
        ["search", "codes.skc", "queries.npy", "found.tsv", "--model", "model.safetensors", "-q"],
        ["evaluate", "model.safetensors", "x.npy", "-n", "5", "--picture", "recall.png", "-q"],
        ["export", "model.safetensors", "checkpoint.pt", "-q"],
        ["info", "checkpoint.pt", "codes.skc", "new.safetensors"],
    ):
        assert main(command) == 0
