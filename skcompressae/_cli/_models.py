"""The model that a command works with, and the parameters that may change after fitting."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from itertools import product
from typing import Any

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import kind_of

__all__ = [
    "ENCODING_OPTIONS",
    "add_encoding_options",
    "check_value_kind",
    "checked_model",
    "matching_model",
    "number_or_auto",
    "positive",
    "read_model",
    "with_arguments",
]

_CODINGS = "least_squares", "activations", "pursuit", "refined_pursuit"
ENCODING_OPTIONS = ("k", "coding", "norm", "flattening", "precision", "device")


def positive(text: str) -> int:
    """Convert an argument to a positive int."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def number_or_auto(kind: type) -> Callable[[str], Any]:
    """Return the converter of an argument that is a number of this type, or "auto"."""

    def convert(text: str) -> Any:
        return text if text == "auto" else kind(text)

    convert.__name__ = f"{kind.__name__} or auto"
    return convert


def add_encoding_options(parser: argparse.ArgumentParser, **of_device: Any) -> None:
    """Declare the parameters of a fitted model that may be set anew; `of_device` is how `--device` is declared."""
    group = parser.add_argument_group("parameters of the model, as it was saved where they are not given")
    group.add_argument("--k", type=positive, help="nonzeros per code; a model serves smaller k than it was fitted with")
    group.add_argument("--coding", choices=["auto", *_CODINGS], help="how a code is made")
    group.add_argument("--norm", choices=["input", "unit", "none"], help="scale of a code")
    group.add_argument(
        "--flattening", type=number_or_auto(float), metavar="F", help="how far values are drawn together, 0 for not"
    )
    group.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], help="of the encoder's product")
    group.add_argument("--device", **(of_device or {"help": "auto, cpu, cuda, cuda:1, mps"}))


def read_model(path: str | os.PathLike[str], arguments: argparse.Namespace) -> Any:
    """Load a model and set what the arguments say.

    Raises
    ------
    CommandError
        If the file is no model.
    """
    if kind_of(path) != "model":
        raise CommandError(f"{path} must be a model as skcompressae fit writes it (.safetensors)")
    from skcompressae.persistence import load_model

    return with_arguments(load_model(path), arguments)


def with_arguments(model: Any, arguments: argparse.Namespace) -> Any:
    """Set what the arguments say of a fitted model.

    Raises
    ------
    UsageError
        If a value is none that the parameter takes, or this machine has no such device.
    """
    given = {name: value for name in ENCODING_OPTIONS if (value := getattr(arguments, name, None)) is not None}
    if given.get("norm") == "none":
        given["norm"] = None
    # the file says where the model was fitted, which may be another machine
    return checked_model(model, {"device": "auto", **given, "verbose": 0, "sparse_output": True})


def checked_model(model: Any, parameters: dict[str, Any]) -> Any:
    """Set parameters that arguments gave, and refuse values that they cannot have before any work is done.

    Raises
    ------
    UsageError
        If a value is none that the parameter takes, or this machine has no such device.
    """
    from skcompressae._torch._device_choice import resolve_device

    model.set_params(**parameters)
    try:
        model._validate_params()
        resolve_device(model.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return model


def check_value_kind(arguments: Any) -> None:
    """Refuse more bits of a value than its kind can have."""
    from skcompressae.packed._quantizer import MAX_RANKED_BITS

    if arguments.value_kind in ("ranked", "fixed") and (arguments.value_bits or 4) > MAX_RANKED_BITS:
        raise UsageError(f"--value-bits must be at most {MAX_RANKED_BITS} with --value-kind {arguments.value_kind}")


def matching_model(model: Any, meta: dict[str, Any], name: str) -> None:
    """Refuse codes that say they were made by another model; only what may be set anew may differ.

    Raises
    ------
    CommandError
        If no setting of this model has the hash that came with the codes.
    """
    from skcompressae.persistence import model_hash

    wanted = meta.get("model_hash")
    if wanted is None:
        return
    saved = model.get_params()
    try:
        precisions = dict.fromkeys([model.precision, "float32", "tf32", "bfloat16"])
        # codes of versions that did not write it down were not flattened, or as the model does it
        flattenings = [meta["flattening"]] if "flattening" in meta else [model.flattening, 0.0]
        given: dict[str, Any] = {name: meta[name] for name in ("k", "norm") if name in meta}
        if meta.get("candidate_factor") is not None:  # of versions that did not write it down, it was the model's
            given["candidate_factor"] = meta["candidate_factor"]
        for precision, coding, flattening in product(precisions, _CODINGS, flattenings):
            model.set_params(coding=coding, precision=precision, flattening=flattening, **given)
            try:
                found = model_hash(model)
            except (TypeError, ValueError):  # no model has such settings
                break
            if found == wanted:
                return
    finally:
        model.set_params(**saved)
    raise CommandError(f"{name} was encoded by another model, whose hash is {wanted}")
