"""scikit-learn's own checks, all of them, on a small fast instance."""

import inspect

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from skcompressae import CompresSAETransformer

pytestmark = pytest.mark.filterwarnings(
    # The checks fit a handful of rows with n_components=1 and the like; both warnings are then what a user should see.
    "ignore::skcompressae.exceptions.DeadLatentsWarning",
    "ignore:k=.* is above n_components:UserWarning",
    "ignore::sklearn.exceptions.SkipTestWarning",
    # The set_output checks mix data frames and arrays on purpose.
    "ignore:X (has|does not have valid) feature names:UserWarning",
)


def small():
    return CompresSAETransformer(n_components=16, k=3, max_iter=4, random_state=0, device="cpu")


@parametrize_with_checks([small(), small().set_params(sparse_output=False), small().set_params(recipe="paper")])
def test_scikit_learn_estimator_check(estimator, check):
    check(estimator)


# Checks that scikit-learn applies to its own estimators but check_estimator does not call.
UNCALLED = [
    "check_param_validation",
    "check_dataframe_column_names_consistency",
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_set_output_transform",
    "check_set_output_transform_pandas",
    "check_set_output_transform_polars",
    "check_global_output_transform_pandas",
    "check_global_set_output_transform_polars",
    "check_n_features_in_after_fitting",
]


# Data frames cannot hold sparse output; test_transformer.py asserts the error that says so.
UNCALLED_CASES = [
    (name, sparse_output)
    for name in UNCALLED
    for sparse_output in (False, True)
    if hasattr(estimator_checks, name) and not (sparse_output and ("pandas" in name or "polars" in name))
]


@pytest.mark.parametrize(("name", "sparse_output"), UNCALLED_CASES)
def test_check_that_check_estimator_does_not_call(name, sparse_output):
    check = getattr(estimator_checks, name)
    assert len(inspect.signature(check).parameters) == 2
    check("CompresSAETransformer", small().set_params(sparse_output=sparse_output))
