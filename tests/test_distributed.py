"""Data-parallel training on the CPU: two processes end where one does."""

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing
from conftest import make_embeddings

from skcompressae import CompresSAETransformer
from skcompressae._torch import _training
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae.distributed import data_parallel

PARAMETERS = {
    "n_components": 48,
    "k": 4,
    "batch_size": 51,  # the two shares differ
    "max_iter": 8,
    "early_stopping": True,
    "neighborhood_weight": 0.0,
    "validation_fraction": 0.1,
    "device": "cpu",
}
# What two ranks differ in, one at a time.
UNLIKE = {
    "learning_rate": (0.01, 0.05),
    "k": (3, 5),
    "max_iter": (6, 8),
    "coding": ("pursuit", "least_squares"),
    "n_refits": (0, 1),
    "residual_bytes": (None, 3),
}


def fit_as_rank(rank, directory):
    """What one process of two does: fit, leave the weights, then start unlike the other and be told so."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2
    )  # fmt: skip
    X = make_embeddings(n_rows=300)
    with data_parallel():
        model = CompresSAETransformer(**PARAMETERS, random_state=0).fit(X)
        with pytest.raises(ValueError, match="int random_state"):
            CompresSAETransformer(**PARAMETERS, random_state=rank).fit(X)
        for name, values in UNLIKE.items():
            with pytest.raises(ValueError, match="the same parameters"):
                CompresSAETransformer(**PARAMETERS | {name: values[rank]}, random_state=0).fit(X)
        with pytest.raises(ValueError, match="Pass the same X"):
            CompresSAETransformer(**PARAMETERS, init="kaiming", random_state=0).fit(X[:: 1 - 2 * rank])
        with pytest.raises(ValueError, match="the same parameters"):
            CompresSAETransformer(**PARAMETERS | {"batch_size": 20 + rank}, random_state=0).partial_fit(X)
        drawn_from = np.random.RandomState(np.random.PCG64(0))
        model_of_numbers = CompresSAETransformer(**PARAMETERS, random_state=drawn_from).partial_fit(X)
        drawn_from.random_sample(rank)
        with pytest.raises(ValueError, match="int random_state"):
            model_of_numbers.partial_fit(X)
        with pytest.raises(ValueError, match=r"a row for every rank; got 1 row\(s\) for 2 ranks"):
            CompresSAETransformer(**PARAMETERS, random_state=0).set_params(batch_size=1).fit(X)
        _training._make_engine = TorchEngine  # as on GPUs
        by_torch = CompresSAETransformer(**PARAMETERS, random_state=0).fit(X)
    np.savez(
        f"{directory}/rank{rank}.npz",
        torch_decoder=by_torch.components_,
        torch_loss_curve=by_torch.loss_curve_,
        encoder=model.encoder_weights_,
        bias=model.encoder_bias_,
        decoder=model.components_,
        loss_curve=model.loss_curve_,
        validation_loss_curve=model.validation_loss_curve_,
    )
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_train_what_one_does(tmp_path):
    torch.multiprocessing.spawn(fit_as_rank, args=(str(tmp_path),), nprocs=2)
    alone = CompresSAETransformer(**PARAMETERS, random_state=0).fit(make_embeddings(n_rows=300))
    first, second = (np.load(tmp_path / f"rank{rank}.npz") for rank in range(2))
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_allclose(first["loss_curve"], alone.loss_curve_, atol=1e-5)
    np.testing.assert_allclose(first["validation_loss_curve"], alone.validation_loss_curve_, atol=1e-5)
    for name, array in (("encoder", alone.encoder_weights_), ("bias", alone.encoder_bias_)):
        np.testing.assert_allclose(first[name], array, atol=1e-5)
    np.testing.assert_allclose(first["decoder"], alone.components_, atol=1e-5)
    np.testing.assert_allclose(first["torch_loss_curve"], alone.loss_curve_, atol=1e-5)
    # Adam divides by the gradient's own size, so rounding moves single entries further
    assert np.abs(first["torch_decoder"] - alone.components_).mean() < 1e-5


def test_data_parallel_needs_a_process_group():
    with pytest.raises(RuntimeError, match="torchrun"), data_parallel():
        pass
