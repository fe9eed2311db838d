"""The graph of an ONNX encoder, in standard operators of opset 18.

ONNX has no solver. Gauss-Jordan elimination of the augmented system ``[G + ridge I | c]`` is one rank-one update per
pivot, the body of a ``Loop``, so the graph does not grow with k. After the pivots S are eliminated, the last column
holds the least-squares values of S and, for every other latent, its product with what S leaves unexplained, which
matching pursuit picks the next pivots by (`_core/_pursuit.py` says how activations guide it). All codings that fit
values are therefore this one loop, and differ in how a pivot is chosen, and in how often it runs. Pivots need no
exchange for stability, as the system is positive definite.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._flattening import MIN_LEFT
from skcompressae._core._pursuit import GUIDANCE, PURSUITS, RIDGE, count_candidates, pursuit_starts
from skcompressae._core._refinement import ABOVE_ALL, N_REFINEMENTS, count_refined
from skcompressae._core._rows import MIN_STRETCHED
from skcompressae._onnx_nodes import GraphBuilder

__all__ = ["INPUT", "OUTPUTS", "encoder_model"]

INPUT = "embeddings"
OUTPUTS = {"indices": np.int32, "values": np.float32}
# The newest that a node here needs (axes as inputs of ReduceMax and ReduceL2), and the file format that goes with it.
_OPSET = 18
_IR_VERSION = 8


class _Pivot(NamedTuple):
    """Names, in the body of the loop, of the pivot's row and column, of itself and of where it stands."""

    row: str
    column: str
    value: str
    is_pivot: str


def encoder_model(onnx: Any, weights: Mapping[str, NDArray[np.float32]], settings: Mapping[str, Any]) -> Any:
    """Build the model of an encoder.

    Parameters
    ----------
    onnx : module
    weights : mapping
        As `coding_weights` gives them.
    settings : mapping
        As `code_settings` gives them; `precision` is not used, the graph computes in float32.

    Returns
    -------
    model : onnx.ModelProto
        From `INPUT`, float32 of shape (n_rows, n_features), to `OUTPUTS` of shape (n_rows, k): indices, ascending in
        each row, and values.
    """
    k, coding, norm = settings["k"], settings["coding"], settings["norm"]
    n_components, n_features = weights["components"].shape
    graph = GraphBuilder(onnx)
    n_rows, rows = _at_least_one_row(graph)
    rows, mark = _finite_rows(graph, rows)
    unit, norms = _unit_rows(graph, rows)
    encoder, bias = (graph.weight(name, weights[name]) for name in ("encoder_weights", "encoder_bias"))
    pre_activations = graph.add("Gemm", unit, encoder, bias, transB=1)
    n = k
    if coding in PURSUITS:
        n = count_candidates(k, settings["candidate_factor"], n_components)
    indices = _largest(graph, pre_activations, n)
    decoded_norms = None
    if coding == "activations":
        values = graph.add("GatherElements", pre_activations, indices, axis=1)
        if norm is not None:
            decoded_norms = _decoded_norms(graph, values, _atoms(graph, weights, indices))
    else:
        magnitudes = graph.add("Abs", graph.add("GatherElements", pre_activations, indices, axis=1))
        indices, values, correlations = _fit(graph, unit, _atoms(graph, weights, indices), indices, magnitudes, n, k)
        for _ in range(N_REFINEMENTS if coding == "refined_pursuit" else 0):
            indices, values, correlations = _refine(graph, unit, weights, indices, values, k)
        if norm is not None:
            decoded_norms = _fitted_norms(graph, values, correlations)
            if settings["flattening"] > 0:
                values = _flattened(
                    graph, indices, values, decoded_norms, settings["flattening"], keeps_mean=settings["keeps_mean"]
                )
                decoded_norms = _decoded_norms(graph, values, _atoms(graph, weights, indices))
    factors = None if decoded_norms is None else _to_unit_norm(graph, decoded_norms)
    if factors is not None and decoded_norms is not None and settings["keeps_mean"]:
        factors = _stretched(graph, indices, values, decoded_norms, factors)
    scales = graph.add("Mul", mark, _scales(graph, norms, factors, is_input=norm == "input"))
    found = graph.add("Cast", indices, to=onnx.TensorProto.INT32), graph.add("Mul", values, scales)
    for array, name in zip(found, OUTPUTS, strict=True):
        graph.add("Slice", array, graph.constant([0]), n_rows, graph.constant([0]), output=name)
    built = onnx.helper.make_graph(
        graph.nodes,
        "skcompressae_encoder",
        [graph.tensor(INPUT, np.float32, ("n_rows", n_features))],
        [graph.tensor(name, dtype, ("n_rows", k)) for name, dtype in OUTPUTS.items()],
        graph.constants,
    )
    return onnx.helper.make_model(built, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _at_least_one_row(graph: GraphBuilder) -> tuple[str, str]:
    """Return the number of rows, and the rows or, where there are none, a zero row.

    TopK of no rows divides by zero in onnxruntime up to 1.23, which ends the process.
    """
    zero = graph.constant([0])
    n_rows = graph.add("Shape", INPUT, start=0, end=1)
    n_missing = graph.add("Cast", graph.add("Equal", n_rows, zero), to=graph.onnx.TensorProto.INT64)
    pads = graph.add("Concat", graph.constant([0, 0]), n_missing, zero, axis=0)
    return n_rows, graph.add("Pad", INPUT, pads)


def _finite_rows(graph: GraphBuilder, rows: str) -> tuple[str, str]:
    """Return rows with 0 for NaN and infinity, and factors, shape (n_rows, 1): NaN for rows that had any, else 1.

    Scores that are NaN have no largest: no index would be picked, or one out of range, which ends the whole batch.
    """
    zero, one, nan = (graph.constant(number, np.float32) for number in (0, 1, np.nan))
    is_finite = graph.add("Less", graph.add("Abs", rows), graph.constant(np.inf, np.float32))
    smallest = graph.add("ReduceMin", graph.add("Where", is_finite, one, zero), graph.constant([1]))
    mark = graph.add("Where", graph.add("Equal", smallest, one), one, nan)
    return graph.add("Where", is_finite, rows, zero), mark


def _unit_rows(graph: GraphBuilder, rows: str) -> tuple[str, str]:
    """Divide rows by their norms, zero rows by 1; return both. Squares are of x / max |x|, which cannot overflow."""
    columns, zero, one = graph.constant([1]), graph.constant(0, np.float32), graph.constant(1, np.float32)
    largest = graph.add("ReduceMax", graph.add("Abs", rows), columns)
    is_zero = graph.add("Equal", largest, zero)
    scaled = graph.add("Div", rows, graph.add("Where", is_zero, one, largest))
    lengths = graph.add("ReduceL2", scaled, columns)
    unit = graph.add("Div", scaled, graph.add("Where", is_zero, one, lengths))
    return unit, graph.add("Mul", largest, lengths)


def _to_unit_norm(graph: GraphBuilder, decoded_norms: str) -> str:
    """Return factors, shape (n_rows, 1), of values that decode to these norms; 1 where they are 0."""
    zero, one = graph.constant(0, np.float32), graph.constant(1, np.float32)
    return graph.add("Div", one, graph.add("Where", graph.add("Greater", decoded_norms, zero), decoded_norms, one))


def _flattened(
    graph: GraphBuilder, indices: str, values: str, decoded_norms: str, flattening: float, *, keeps_mean: bool
) -> str:
    """Return fitted values drawn together; see `_core/_flattening.py`."""
    zero, one = graph.constant(0, np.float32), graph.constant(1, np.float32)
    explained = graph.add("Mul", decoded_norms, decoded_norms)
    left = graph.add("Sub", one, explained)
    is_left = graph.add("Greater", left, graph.constant(MIN_LEFT, np.float32))
    rest = graph.add("Sqrt", graph.add("Where", is_left, left, zero))
    squares = graph.add("ReduceSum", graph.add("Mul", values, values), graph.constant([1]))
    divisors = graph.add("Where", graph.add("Greater", squares, zero), squares, one)
    share = graph.add("Min", graph.add("Div", explained, divisors), one)
    amounts = graph.add("Mul", graph.constant(flattening, np.float32), graph.add("Mul", share, rest))
    powers = graph.add("Sub", one, amounts)
    found = graph.add("Mul", graph.add("Sign", values), graph.add("Pow", graph.add("Abs", values), powers))
    if not keeps_mean:
        return found
    return graph.add("Where", graph.add("Equal", indices, graph.constant(0)), values, found)


def _stretched(graph: GraphBuilder, indices: str, values: str, decoded_norms: str, factors: str) -> str:
    """Return factors, shape (n_rows, k), that make latent 0 the row's share of the mean; see `_core/_rows.py`."""
    zero, one, columns = graph.constant(0, np.float32), graph.constant(1, np.float32), graph.constant([1])
    without_ridge = graph.constant(1 + RIDGE, np.float32)
    is_mean = graph.add("Equal", indices, graph.constant(0))
    fitted = graph.add("ReduceSum", graph.add("Where", is_mean, values, zero), columns)
    share = graph.add("Mul", fitted, without_ridge)
    share_squared = graph.add("Mul", share, share)
    fitted_squared = graph.add("Mul", fitted, fitted)
    stretched = graph.add("Sub", graph.add("Mul", decoded_norms, decoded_norms), fitted_squared)
    is_large = graph.add("Greater", stretched, graph.constant(MIN_STRETCHED, np.float32))
    is_short = graph.add("Less", share_squared, one)
    has_mean = graph.add("Greater", fitted_squared, zero)
    is_stretched = graph.add("And", has_mean, graph.add("And", is_large, is_short))
    missing = graph.add("Where", is_stretched, graph.add("Sub", one, share_squared), one)
    stretch = graph.add("Sqrt", graph.add("Div", missing, graph.add("Where", is_stretched, stretched, one)))
    return graph.add("Where", is_stretched, graph.add("Where", is_mean, without_ridge, stretch), factors)


def _scales(graph: GraphBuilder, norms: str, factors: str | None, *, is_input: bool) -> str:
    """Return what to multiply values of unit rows by, shape (n_rows, 1 or k), so that they decode to the norm wanted.

    `factors` make the norm 1; without them values stay as they are. Zero rows have the factor 0.
    """
    zero, one = graph.constant(0, np.float32), graph.constant(1, np.float32)
    scales = one if factors is None else factors
    if factors is not None and is_input:
        scales = graph.add("Mul", norms, scales)
    return graph.add("Where", graph.add("Greater", norms, zero), scales, zero)


def _largest(graph: GraphBuilder, scores: str, n: int) -> str:
    """Return the int64 indices of the n largest magnitudes, ascending."""
    magnitudes, count = graph.add("Abs", scores), graph.constant([n])
    _, found = graph.add_several("TopK", magnitudes, count, outputs=graph.new_names("largest", "found"), axis=1)
    return graph.add_several("TopK", found, count, outputs=graph.new_names("ascending", "place"), axis=1, largest=0)[0]


def _atoms(graph: GraphBuilder, weights: Mapping[str, NDArray[np.float32]], indices: str) -> str:
    """Return the decoder's rows of shape (n_rows, n, n_features)."""
    return graph.add("Gather", graph.weight("components", weights["components"]), indices, axis=0)


def _decoded(graph: GraphBuilder, values: str, atoms: str) -> str:
    """Return what values decode to, shape (n_rows, n_features)."""
    products = graph.add("MatMul", graph.add("Unsqueeze", values, graph.constant([1])), atoms)
    return graph.add("Squeeze", products, graph.constant([1]))


def _decoded_norms(graph: GraphBuilder, values: str, atoms: str) -> str:
    """Return the norms, shape (n_rows, 1), of what values decode to."""
    return graph.add("ReduceL2", _decoded(graph, values, atoms), graph.constant([1]))


def _fitted_norms(graph: GraphBuilder, values: str, correlations: str) -> str:
    """Return the same for fitted values: ``s G s = s (c - ridge s)``, as s solves ``(G + ridge I) s = c``."""
    explained = graph.add("Sub", correlations, graph.add("Mul", graph.constant(RIDGE, np.float32), values))
    squares = graph.add("ReduceSum", graph.add("Mul", values, explained), graph.constant([1]))
    return graph.add("Sqrt", graph.add("Relu", squares))


def _fit(
    graph: GraphBuilder, unit: str, atoms: str, indices: str, magnitudes: str, n: int, k: int
) -> tuple[str, str, str]:
    """Fit values of k of n candidates by least squares.

    Parameters
    ----------
    graph : GraphBuilder
    unit, atoms, indices, magnitudes : str
        Names of unit rows, of their candidates' decoder rows, of shape (n_rows, n, n_features), of the candidates and
        of the magnitudes of their activations.
    n, k : int
        k below n means pursuit.

    Returns
    -------
    indices, values, correlations : str
        Names of arrays of shape (n_rows, k), for the k chosen. Correlations are the products of rows and decoder rows.
    """
    gram = graph.add("MatMul", atoms, graph.add("Transpose", atoms, perm=[0, 2, 1]))
    products = graph.add("MatMul", atoms, graph.add("Unsqueeze", unit, graph.constant([2])))
    correlations = graph.add("Squeeze", products, graph.constant([2]))
    raised = graph.add("Add", gram, graph.constant(np.eye(n) * RIDGE, np.float32))
    system = graph.add("Concat", raised, products, axis=2)
    if n == k:
        return indices, graph.add("Gather", _eliminate_all(graph, system, n), graph.constant(n), axis=2), correlations
    solved, is_picked = _pursue(graph, system, magnitudes, n, k)
    # Keys that are distinct, so that no engine's rule for ties is relied on.
    keys = graph.add("Where", is_picked, graph.constant([range(n)]), graph.constant([range(n, 2 * n)]))
    names = graph.new_names("picks", "place")
    picks = graph.add_several("TopK", keys, graph.constant([k]), outputs=names, axis=1, largest=0)[0]
    values = graph.add("Gather", solved, graph.constant(n), axis=2)
    indices, values, correlations = (
        graph.add("GatherElements", name, picks, axis=1) for name in (indices, values, correlations)
    )
    return indices, values, correlations


def _refine(
    graph: GraphBuilder, unit: str, weights: Mapping[str, NDArray[np.float32]], indices: str, values: str, k: int
) -> tuple[str, str, str]:
    """Pursue again among the latents of codes and as many others that correlate most with what they leave.

    Results are as those of `_fit`.
    """
    n = count_refined(k, len(weights["components"]))
    rest = graph.add("Sub", unit, _decoded(graph, values, _atoms(graph, weights, indices)))
    correlations = graph.add("Gemm", rest, graph.weight("components", weights["components"]), transB=1)
    above_all = graph.add("Expand", graph.constant(ABOVE_ALL, np.float32), graph.add("Shape", values))
    candidates = _largest(graph, graph.add("ScatterElements", correlations, indices, above_all, axis=1), n)
    activations = graph.add("ScatterElements", correlations, indices, values, axis=1)
    magnitudes = graph.add("Abs", graph.add("GatherElements", activations, candidates, axis=1))
    return _fit(graph, unit, _atoms(graph, weights, candidates), candidates, magnitudes, n, k)


def _eliminate_all(graph: GraphBuilder, system: str, n: int) -> str:
    """Return the system, shape (n_rows, n, n + 1), after all its pivots are eliminated in their order."""
    body = GraphBuilder(graph.onnx, graph)
    at = body.add("Unsqueeze", "number", body.constant([0]))
    row = body.add("Gather", "system", at, axis=1)
    pivot = _Pivot(
        row=row,
        column=body.add("Gather", "system", at, axis=2),
        value=body.add("Gather", row, at, axis=2),
        is_pivot=body.add("Gather", body.constant(np.eye(n), np.bool_), at, axis=1),
    )
    _eliminate(body, pivot)
    return _loop(graph, body, {"system": (system, np.float32, (n, n + 1))}, n)[0]


def _pursue(graph: GraphBuilder, system: str, magnitudes: str, n: int, k: int) -> Sequence[str]:
    """Return the system after k pivots that pursuit chose, and which they were: booleans of shape (n_rows, n)."""
    nothing = graph.add("Less", magnitudes, graph.constant(-np.inf, np.float32))
    names = graph.new_names("leading", "place")
    leading = graph.add_several("TopK", magnitudes, graph.constant([k]), outputs=names, axis=1)[0]
    kth = graph.add("ReduceMin", leading, graph.constant([1]))
    is_positive = graph.add("Greater", kth, graph.constant(0, np.float32))
    safe = graph.add("Where", is_positive, kth, graph.constant(1, np.float32))
    guidance = graph.add("Div", graph.add("Mul", magnitudes, graph.constant(GUIDANCE, np.float32)), safe)
    starts_round = [step in pursuit_starts(k) for step in range(k)]
    body = GraphBuilder(graph.onnx, graph)
    unexplained = body.add("Abs", body.add("Gather", "system", body.constant(n), axis=2))
    starts = body.add("Gather", body.constant(starts_round, np.bool_), "number", axis=0)
    scores = body.add("Where", starts, body.add("Add", unexplained, guidance), "scores")
    body.add("Identity", scores, output="scores_after")
    best = body.add("ArgMax", body.add("Where", "is_picked", body.constant(-1, np.float32), scores), axis=1)
    is_best = body.add("Equal", best, body.constant([range(n)]))
    body.add("Or", "is_picked", is_best, output="is_picked_after")
    at = body.add("Unsqueeze", best, body.constant([2]))
    column = body.add("GatherElements", "system", body.add("Expand", at, body.constant([1, n, 1])), axis=2)
    pivot = _Pivot(
        row=body.add("GatherElements", "system", body.add("Expand", at, body.constant([1, 1, n + 1])), axis=1),
        column=column,
        value=body.add("GatherElements", column, at, axis=1),
        is_pivot=body.add("Unsqueeze", is_best, body.constant([2])),
    )
    _eliminate(body, pivot)
    state = {
        "system": (system, np.float32, (n, n + 1)),
        "is_picked": (nothing, np.bool_, (n,)),
        "scores": (magnitudes, np.float32, (n,)),
    }
    return _loop(graph, body, state, k)[:2]


def _eliminate(body: GraphBuilder, pivot: _Pivot) -> None:
    """Clear the pivot's column but for a 1 in its row."""
    # Rounding may leave less than the ridge of the diagonal where latents nearly coincide, as in `_core/_pursuit.py`.
    value = body.add("Max", pivot.value, body.constant(RIDGE, np.float32))
    less_one = body.add("Sub", value, body.constant(1, np.float32))
    factors = body.add("Where", pivot.is_pivot, less_one, pivot.column)
    change = body.add("Mul", factors, body.add("Div", pivot.row, value))
    body.add("Sub", "system", change, output="system_after")


def _loop(
    graph: GraphBuilder, body: GraphBuilder, state: Mapping[str, tuple[str, type, tuple[int, ...]]], n_steps: int
) -> Sequence[str]:
    """Run a body that reads ``number`` and each name of the state, and writes each name with ``_after``.

    Parameters
    ----------
    graph, body : GraphBuilder
    state : mapping
        For each name: where its first value is, its dtype, and its shape without the rows.
    n_steps : int

    Returns
    -------
    names : sequence of str
        Of what is left of the state.
    """
    body.add("Identity", "goes_on", output="goes_on_after")
    inputs = [body.tensor("number", np.int64, ()), body.tensor("goes_on", np.bool_, ())]
    outputs = [body.tensor("goes_on_after", np.bool_, ())]
    for name, (_, dtype, shape) in state.items():
        inputs.append(body.tensor(name, dtype, ("n_rows", *shape)))
        outputs.append(body.tensor(f"{name}_after", dtype, ("n_rows", *shape)))
    return graph.add_several(
        "Loop",
        graph.constant(n_steps),
        graph.constant(True, np.bool_),
        *(first for first, _, _ in state.values()),
        outputs=graph.new_names(*(f"{name}_at_the_end" for name in state)),
        body=graph.onnx.helper.make_graph(body.nodes, "pick_and_eliminate", inputs, outputs),
    )
