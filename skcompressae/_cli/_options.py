"""The subcommands: what each takes, and examples of it. Importing this loads none of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from skcompressae._cli._models import add_encoding_options, number_or_auto
from skcompressae._cli._models import positive as _positive

__all__ = ["COMMANDS"]

Run = Callable[[argparse.Namespace], Any]


def _later(module: str, name: str) -> Run:
    """Return a function that is imported when it is called, so that `--help` waits for nothing."""

    def run(arguments: argparse.Namespace) -> Any:
        return getattr(import_module(f"skcompressae._cli.{module}"), name)(arguments)

    return run


def _add_restart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--restart", action="store_true", help="throw unfinished work away instead of continuing it")


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="replace an output that exists")


def _add_column(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--column", metavar="NAME", help="the embedding column of a Parquet input with several")


def _add_values(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--value-bits",
        type=int,
        choices=range(1, 17),
        metavar="BITS",
        help="of a value in packed codes, 1 to 16 (default: 4)",
    )
    parser.add_argument(
        "--value-kind",
        choices=["auto", "ranked", "uniform", "fixed"],
        help="of levels in packed codes (default: auto); fixed stores no scale per row",
    )


def _search_device(text: str) -> str:
    """Refuse devices that no index is searched on."""
    if re.fullmatch(r"auto|cpu|cuda(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda and cuda:NUMBER")
    return text


def _fit(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("input", metavar="EMBEDDINGS", help=".npy or Parquet")
    parser.add_argument("output", metavar="MODEL", help="the model to write, .safetensors")
    parser.add_argument("--n-components", type=_positive, help="width of a code (default: 4096)")
    parser.add_argument("--k", type=_positive, help="nonzeros per code (default: 32)")
    parser.add_argument("--recipe", choices=["default", "dense", "paper"], help="how to train")
    parser.add_argument("--max-iter", type=number_or_auto(int), metavar="N", help="optimiser steps")
    parser.add_argument("--batch-size", type=number_or_auto(int), metavar="N", help="rows per step")
    parser.add_argument("--norm", choices=["input", "unit", "none"], help="scale of a code")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--random-state", type=int, metavar="SEED", help="for a model that comes out the same again")
    parser.add_argument(
        "--checkpoint-dir",
        metavar="FOLDER",
        help="keep the state of the training there; the same command goes on from it",
    )
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter of CompresSAETransformer, as often as needed; a value of JSON or Python, or a word",
    )
    _add_column(parser)
    _add_force(parser)
    return _later("_fit", "fit")


def _encode(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("model", metavar="MODEL", help=".safetensors")
    parser.add_argument("input", metavar="EMBEDDINGS", help=".npy or Parquet")
    parser.add_argument("output", metavar="CODES", help=".npz (CSR), .parquet (list columns) or .skc (packed)")
    _add_values(parser)
    parser.add_argument(
        "--no-residual", action="store_true", help="leave out the residual codes of a model with residual_bytes"
    )
    parser.add_argument(
        "--layout",
        choices=["compact", "int32", "struct"],
        help="of Parquet columns: indices as uint16 (default); as int32, for Spark and Qdrant; or one struct, for "
        "Milvus",
    )
    parser.add_argument(
        "--value-type",
        choices=["float32", "float16"],
        help="of Parquet values (default: float32); Spark cannot read float16",
    )
    parser.add_argument("--drop-columns", action="store_true", help="leave the input's other Parquet columns out")
    _add_restart(parser)
    _add_column(parser)
    _add_force(parser)
    add_encoding_options(parser)
    return _later("_encode", "encode")


def _decode(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("model", metavar="MODEL", help=".safetensors")
    parser.add_argument("input", metavar="CODES", help=".npz, Parquet, .skc or .ska")
    parser.add_argument("output", metavar="EMBEDDINGS", help=".npy or .parquet")
    parser.add_argument("--n-components", type=_positive, help="width of the codes where a Parquet file does not tell")
    parser.add_argument("--column", metavar="NAME", help="the Parquet column to write (default: embedding)")
    _add_restart(parser)
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps")
    _add_force(parser)
    return _later("_encode", "decode")


def _evaluate(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("model", metavar="MODEL", help=".safetensors")
    parser.add_argument(
        "input", metavar="EMBEDDINGS", help=".npy or Parquet; best rows that the model was not fitted on"
    )
    parser.add_argument("--queries", metavar="FILE", help="queries; else rows are held out of EMBEDDINGS")
    parser.add_argument("--n-queries", type=_positive, default=1000, metavar="N", help="at most (default: 1000)")
    parser.add_argument(
        "--max-documents",
        type=_positive,
        default=100_000,
        metavar="N",
        help="a random sample of so many is searched, in memory (default: 100000); recall falls as it grows",
    )
    parser.add_argument("-n", "--n-neighbors", type=_positive, default=100, metavar="N", help="recall@N (default: 100)")
    parser.add_argument("--nonzeros", type=_positive, nargs="+", metavar="K", help="k to measure (default: k/2, k, 2k)")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=["asymmetric", "reconstructed", "sparse", "packed"],
        default=["asymmetric", "reconstructed", "sparse", "packed"],
        help="ways to search (default: all)",
    )
    parser.add_argument(
        "--references", nargs="*", choices=["pca", "pq", "opq"], default=["pca"], help="others (default: pca)"
    )
    parser.add_argument("--metric", choices=["cosine", "dot"], default="cosine", help="(default: cosine)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write the figures and how they came about")
    parser.add_argument("--picture", metavar="FILE", help="draw recall against compression, .png, .svg or .pdf")
    _add_column(parser)
    _add_force(parser)
    add_encoding_options(parser)
    return _later("_evaluate", "evaluate")


def _search(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("codes", metavar="CODES", help=".npz, Parquet, .skc or .ska; or an index of --save-index")
    parser.add_argument("queries", metavar="QUERIES", help="embeddings (.npy, Parquet) or codes")
    parser.add_argument("output", metavar="OUTPUT", nargs="?", help=".tsv, .npz or .parquet; else a table on stdout")
    parser.add_argument("--model", metavar="MODEL", help="what encoded the codes; needed where queries are embeddings")
    parser.add_argument("-n", "--n-neighbors", type=_positive, default=10, metavar="N", help="(default: 10)")
    parser.add_argument(
        "--mode", choices=["auto", "sparse", "reconstructed", "asymmetric"], help="what is compared (default: auto)"
    )
    parser.add_argument("--metric", choices=["cosine", "geometric", "dot"], help="(default: cosine)")
    parser.add_argument("--rerank", type=_positive, metavar="N", help="candidates that residual codes put in order")
    parser.add_argument("--save-index", metavar="FILE", help="keep the index for other searches")
    parser.add_argument("--column", metavar="NAME", help="the embedding column of Parquet queries with several")
    _add_force(parser)
    add_encoding_options(
        parser,
        type=_search_device,
        help="auto, cpu, cuda, cuda:1: where an index is built and searched (default: cpu) and queries are encoded "
        "(default: auto)",
    )
    return _later("_search", "search")


def _info(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("files", metavar="FILE", nargs="+", help="any file that skcompressae reads")
    parser.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    return _later("_info", "info")


def _export(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("input", metavar="INPUT", help="a model, a reference checkpoint, or codes")
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        help="of a model: .safetensors, .onnx or .pt (reference checkpoint); of codes: .npz, .parquet, .skc, .ska",
    )
    _add_values(parser)
    parser.add_argument("--n-components", type=_positive, help="width of the codes where a Parquet file does not tell")
    _add_force(parser)
    add_encoding_options(parser)
    return _later("_export", "export")


COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], Run]]] = {
    "fit": (
        "train a model on embeddings",
        """
        skcompressae fit embeddings.npy model.safetensors
            4,096 latents, 32 nonzeros a code. The file is mapped, not loaded.
        skcompressae fit embeddings.npy model.safetensors --n-components 8192 --k 64 --random-state 0
        skcompressae fit items.parquet model.safetensors --column text_embedding
        skcompressae fit embeddings.npy model.safetensors --param early_stopping=true --param init=data
            Any parameter of CompresSAETransformer; values are as in JSON (true, null, 0.01), as in Python (True, None,
            .01), or words.

        skcompressae fit embeddings.npy model.safetensors --random-state 0 --checkpoint-dir training
            After a crash, the same command goes on from the last checkpoint.

        Ctrl-C ends training early: the weights so far are saved, and the exit code is 130.
        """,
        _fit,
    ),
    "encode": (
        "turn embeddings into sparse codes",
        """
        skcompressae encode model.safetensors embeddings.npy codes.npz
            A CSR matrix; scipy.sparse.load_npz reads it.
        skcompressae encode model.safetensors items.parquet codes.parquet --layout int32
            Columns "indices" and "values" in the place of the embeddings; the other columns stay.
        skcompressae encode model.safetensors embeddings.npy codes.skc --k 16
            Packed codes, with half of the nonzeros of a model of k=32.

        Memory does not grow with the input. Finished rows are kept in CODES.partial beside the output; after a crash
        or Ctrl-C, the same command goes on from there and writes the same bytes. Where model, input or options have
        changed it refuses; --restart begins anew.
        """,
        _encode,
    ),
    "decode": (
        "turn codes back into embeddings",
        """
        skcompressae decode model.safetensors codes.npz reconstructed.npy
        skcompressae decode model.safetensors codes.parquet reconstructed.parquet --column embedding

        Resumes like encode.
        """,
        _decode,
    ),
    "evaluate": (
        "measure recall against bytes on held-out queries",
        """
        skcompressae evaluate model.safetensors embeddings.npy
            Holds 1,000 rows out as queries, searches the others in every mode, prints a table.
        skcompressae evaluate model.safetensors documents.npy --queries queries.npy -n 10 --nonzeros 16 32 64
        skcompressae evaluate model.safetensors embeddings.npy --json recall.json --picture recall.png

        Sizes are those of CSR in memory, or of packed codes with 4-bit values. PCA is fitted on the documents.
        """,
        _evaluate,
    ),
    "search": (
        "find the nearest codes of queries",
        """
        skcompressae search codes.npz queries.npy --model model.safetensors -n 10
            A table: query, rank, document (row of CODES from 0), distance.
        skcompressae search codes.skc queries.npy neighbors.parquet --model model.safetensors -n 100
        skcompressae search codes.npz codes.npz neighbors.npz -n 11
            Codes against codes, without a model; each row finds itself too.
        skcompressae search codes.npz queries.npy --model model.safetensors --save-index codes.index > found.tsv
        skcompressae search codes.index queries.npy > found.tsv
        """,
        _search,
    ),
    "info": (
        "say what files hold",
        """
        skcompressae info model.safetensors codes.npz
        skcompressae info --json codes.skc
        """,
        _info,
    ),
    "export": (
        "write a model or codes in another format",
        """
        skcompressae export codes.skc codes.npz
        skcompressae export codes.npz codes.skc --value-bits 6
        skcompressae export codes.skc codes.parquet
        skcompressae export codes.skc codes.ska
            The archive is lossless, smaller where there are many rows, and unpacked into memory to be searched.
        skcompressae export model.safetensors smaller.safetensors --k 16
        skcompressae export model.safetensors encoder.onnx --norm unit
            The encoder as an ONNX model, for onnxruntime and other engines.
        skcompressae export checkpoint.pt model.safetensors --k 32
            A checkpoint of the paper's reference implementation, which does not say its k. Nothing in it is executed.
        skcompressae export model.safetensors checkpoint.pt
        """,
        _export,
    ),
}
