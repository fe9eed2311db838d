"""Lines on stderr, which never fail a command, and what stands for the streams that its caller has closed."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TextIO

from skcompressae._files import FULL

__all__ = ["drop_output", "escapes_on_stdout", "one_line", "resumes", "say", "stand_ins_for_closed_streams"]


def say(text: str, *, is_quiet: bool = False) -> None:
    """Print a line to stderr unless `is_quiet`; where that fails the line is lost, not the work that it tells of."""
    if is_quiet:
        return
    try:
        print(text, file=sys.stderr)
    except OSError:  # a full disk, a pipe that nobody reads
        drop_output(sys.stderr)


def one_line(error: BaseException, arguments: argparse.Namespace) -> str:
    """Return what an error says, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in FULL:
        output = error.filename or getattr(arguments, "output", None) or "the output"
        return " ".join(f"{output} could not be written: {error.strerror}{resumes(arguments)}".splitlines())
    if isinstance(error, OSError) and error.filename is not None:
        return " ".join(f"{error.filename}: {error.strerror}".splitlines())
    if isinstance(error, MemoryError):
        return f"not enough memory: {text or 'an allocation failed'}"
    return text or type(error).__name__


def resumes(arguments: argparse.Namespace) -> str:
    """Return how a command that was cut short goes on, to be put behind what ended it; nothing where it does not."""
    if hasattr(arguments, "restart"):
        return "; the same command goes on from the rows that are finished"
    has_checkpoints = getattr(arguments, "checkpoint_dir", None) is not None
    return "; the same command goes on from the last checkpoint, if there is one" if has_checkpoints else ""


def drop_output(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere, or Python complains once more when it flushes at exit."""
    with suppress(OSError), open(os.devnull, "wb") as nowhere:  # a stream in memory has no descriptor
        os.dup2(nowhere.fileno(), stream.fileno())


class _Unread(io.TextIOWrapper):
    """A stdout that nobody reads, like a closed pipe: a result that is written to it is no success."""

    def write(self, text: str, /) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@contextmanager
def stand_ins_for_closed_streams() -> Iterator[None]:
    """Replace a stdout or stderr that the caller has closed, which Python sets to None.

    The stand-ins take the lowest descriptors that are free, those of the closed streams, so that no file of the command
    gets them and with them what libraries print.
    """
    with ExitStack() as stack:
        if sys.stdout is None:
            sys.stdout = stack.enter_context(_Unread(stack.enter_context(open(os.devnull, "wb"))))
            stack.callback(setattr, sys, "stdout", None)
        if sys.stderr is None:
            sys.stderr = stack.enter_context(open(os.devnull, "w", errors="backslashreplace"))
            stack.callback(setattr, sys, "stderr", None)
        yield


@contextmanager
def escapes_on_stdout() -> Iterator[None]:
    """Let stdout write what it has no characters for, such as a file name that is no text, as escapes: stderr does."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or stream.errors != "strict":
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors="strict")
