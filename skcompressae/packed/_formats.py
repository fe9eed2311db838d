"""What `PackedCodes` can be written to and read from; each format is a module of its own, imported when used."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from skcompressae.packed._store import PackedCodes

__all__ = ["PackedFormatsMixin"]


class PackedFormatsMixin:
    """Files, archives and Arrow tables of packed codes."""

    __slots__ = ()

    def save(self: Any, path: str | os.PathLike[str]) -> None:
        """Write the store to a file, atomically; read it with `load`.

        Parameters
        ----------
        path : path-like
            The file, by convention with a name that ends in ".skc"; one that exists is replaced.
        """
        from skcompressae.packed import _files

        _files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool | None = None) -> PackedCodes:
        """Read a store written by `save`.

        Parameters
        ----------
        path : path-like
            A file that `save` wrote.
        mmap : bool, default=False
            Map the rows instead of reading them: opening takes milliseconds whatever the size.
        verify : bool, default=None
            Compare the checksums of the rows, which reads all of them; None is ``not mmap``. Header and codebooks
            are always verified.

        Returns
        -------
        packed : PackedCodes

        Raises
        ------
        CodesFormatError
            If the file is damaged, truncated, foreign or newer.
        """
        from skcompressae.packed import _files

        return _files.load(path, mmap=mmap, verify=not mmap if verify is None else verify)

    def append_to(self: Any, path: str | os.PathLike[str]) -> None:
        """Add these rows to the end of a saved store, atomically.

        The file is written anew (it takes its size in free space meanwhile), so a reader that has it mapped keeps its
        old rows and a crash leaves the old file.

        Parameters
        ----------
        path : path-like
            A file of the same layout and quantizers.
        """
        from skcompressae.packed import _files

        _files.append(self, path)

    def to_archive(self: Any) -> bytes:
        """Return the store entropy-coded, lossless, for cold storage; read it with `from_archive`.

        Returns
        -------
        archive : bytes
            To be written to a file as it is.
        """
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[0]

    def archive_report(self: Any) -> dict[str, float]:
        """Return the bytes of the archive per nonzero beside the entropy of what it encodes.

        Returns
        -------
        report : dict
            ``bytes`` of the whole archive; and, per nonzero, ``bytes_per_nonzero``, ``entropy_bytes``
            (empirical entropy of words under the archive's contexts, with raw bits and scales, without
            tables) and ``set_bytes`` (``log2(binomial(n_components, k))`` for the indices of each row as a
            set, equally likely).
        """
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[1]

    @classmethod
    def from_archive(cls, archive: bytes | bytearray | memoryview | str | os.PathLike[str]) -> PackedCodes:
        """Read the bytes of `to_archive`, or a file that holds them; every checksum is verified.

        Parameters
        ----------
        archive : bytes-like or path-like
            What `to_archive` returned, or the file that it was written to.

        Returns
        -------
        packed : PackedCodes
            The same store.
        """
        from skcompressae.packed import _archiving

        return _archiving.from_archive(archive)

    def to_arrow(self: Any) -> pa.Table:
        """Return an Arrow table with list columns "indices" and "values"; needs pyarrow (extra ``arrow``).

        Returns
        -------
        table : pyarrow.Table
            One row a code; the quantizer is in the schema's metadata.
        """
        from skcompressae.packed import _arrow

        return _arrow.to_arrow(self)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, n_threads: int = 1) -> PackedCodes:
        """Pack a table of `to_arrow` again, also after a round trip through Parquet; the store comes back equal.

        Parameters
        ----------
        table : pyarrow.Table
            As `to_arrow` made it.
        n_threads : int, default=1
            Threads that pack blocks of rows.

        Returns
        -------
        packed : PackedCodes
            The store.
        """
        from skcompressae.packed import _arrow

        return _arrow.from_arrow(table, n_threads=n_threads)
