"""`skcompressae`: the parser of the command line, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

from skcompressae._cli._errors import CommandError
from skcompressae._cli._formats import check_apart
from skcompressae._cli._messages import (
    drop_output,
    escapes_on_stdout,
    one_line,
    resumes,
    say,
    stand_ins_for_closed_streams,
)
from skcompressae._cli._models import positive
from skcompressae._cli._options import COMMANDS
from skcompressae._version import __version__

__all__ = ["main", "make_parser"]

_DESCRIPTION = """\
Compress embeddings into sparse codes, and search the codes.

  skcompressae fit embeddings.npy model.safetensors --n-components 4096 --k 32
  skcompressae encode model.safetensors embeddings.npy codes.npz
  skcompressae search codes.npz queries.npy --model model.safetensors -n 10
"""
_EPILOG = """\
Files are recognised by their content when they are read, and by their suffix when they are written:

  .npy          embeddings, a matrix of floats or integers, one row each
  .parquet      embeddings, a column of lists of floats; or codes, columns "indices" and "values"
  .npz          codes, a CSR matrix of scipy.sparse.save_npz
  .skc .ska     codes, packed into about two bytes a nonzero or archived (smallest; unpacked to be searched)
  .safetensors  a model
  .onnx         the encoder of a model, for onnxruntime (written only)
  .pt           a checkpoint of the paper's reference implementation, read and written by export

Exit codes: 0 done; 1 the data, a model or a file is not as it must be; 2 the arguments are not; 130 interrupted by
Ctrl-C; 141 nobody reads the output any more. Errors are one line on stderr, "skcompressae: error: ...".
"skcompressae COMMAND --help" explains a command by examples.
"""
# What the API raises about data, models and parameters; anything else is a defect and shows its traceback.
_REFUSALS = (CommandError, OSError, ValueError, ImportError, MemoryError)
_INTERRUPTED, _BROKEN_PIPE = 130, 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with a usage error, also where stderr takes no more, which Python 3.10 does not foresee."""
        say(self.format_usage().rstrip("\n"))
        say(f"{self.prog}: error: {message}")
        raise SystemExit(2)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands; importing neither torch nor scikit-learn."""
    common = _Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress and no messages on stderr but errors")
    group.add_argument("--threads", type=positive, metavar="N", help="threads to use; all cores if not given")
    group.add_argument("--traceback", action="store_true", help="show where an error comes from")
    parser = _Parser(
        prog="skcompressae",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"skcompressae {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (summary, examples, declare) in COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            parents=[common],
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="examples:\n" + textwrap.indent(textwrap.dedent(examples).strip("\n"), "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        subparser.set_defaults(run=declare(subparser), parser=subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        Arguments; None takes those of the process.

    Returns
    -------
    exit_code : int
    """
    with stand_ins_for_closed_streams(), escapes_on_stdout():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parse(argv)
    except SystemExit as stop:  # argparse: help, version and usage errors
        return int(stop.code or 0)
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            _show_warnings_in_one_line(arguments.quiet)
            if arguments.threads:
                _limit_threads(arguments.threads, stack)
            check_apart(arguments)
            exit_code = arguments.run(arguments)
            sys.stdout.flush()
        return int(exit_code or 0)
    except KeyboardInterrupt:
        say(f"skcompressae: interrupted{resumes(arguments)}")
        return _INTERRUPTED
    except BrokenPipeError:
        drop_output(sys.stdout)
        return _BROKEN_PIPE
    except _REFUSALS as error:
        if arguments.traceback:
            raise
        say(f"skcompressae: error: {one_line(error, arguments)}")
        return error.exit_code if isinstance(error, CommandError) else 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; an output that may be left out is also found behind the options, where argparse does not look for it."""
    arguments, left = make_parser().parse_known_args(argv)
    if len(left) == 1 and not left[0].startswith("-") and getattr(arguments, "output", "given") is None:
        arguments.output = left.pop()
    if left:
        arguments.parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def _show_warnings_in_one_line(is_quiet: bool) -> None:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"skcompressae: warning: {' '.join(str(message).split())}", is_quiet=is_quiet)

    warnings.simplefilter("default")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    show_warning: Callable[..., None] = show
    warnings.showwarning = show_warning


def _limit_threads(n_threads: int, stack: ExitStack) -> None:
    import numpy  # noqa: F401 - the library that is limited has to be loaded
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    if torch is None:  # what is not loaded, as it may never be needed, reads the environment then
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(n_threads)
        stack.callback(_set_back, "OMP_NUM_THREADS", before)
    else:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(n_threads)
    stack.enter_context(threadpool_limits(n_threads))


def _set_back(name: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before
