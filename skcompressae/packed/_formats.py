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
        """Write the store to a file.

        The file appears whole or not at all: it is written beside `path` and moved there in one step. Header, codebooks
        and rows carry checksums.

        Parameters
        ----------
        path : path-like
            The file, by convention with a name that ends in ".skc"; one that exists is replaced.

        See Also
        --------
        load : Reads it.
        to_archive : Smaller where there are many rows, but not to be searched as it is.
        to_arrow : For other programs.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> with TemporaryDirectory() as folder:
        ...     packed.save(Path(folder) / "codes.skc")
        ...     PackedCodes.load(Path(folder) / "codes.skc") == packed
        True
        """
        from skcompressae.packed import _files

        _files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool | None = None) -> PackedCodes:
        """Read a store written by `save`.

        Nothing in the file is executed, and its sizes are checked before anything is allocated.

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
        PackedCodes
            The store that was saved.

        Raises
        ------
        CodesFormatError
            If the file is damaged, truncated, foreign or newer.

        See Also
        --------
        save : Writes the file.
        from_archive : Reads the other kind of file.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> with TemporaryDirectory() as folder:
        ...     packed.save(Path(folder) / "codes.skc")
        ...     mapped = PackedCodes.load(Path(folder) / "codes.skc", mmap=True)
        >>> mapped.shape
        (2, 4)
        """
        from skcompressae.packed import _files

        return _files.load(path, mmap=mmap, verify=not mmap if verify is None else verify)

    def append_to(self: Any, path: str | os.PathLike[str]) -> None:
        """Add these rows to the end of a saved store.

        The file is written anew (it takes its size in free space meanwhile), so a reader that has it mapped keeps its
        old rows and a crash leaves the old file.

        Parameters
        ----------
        path : path-like
            A file of the same layout and quantizers.

        Raises
        ------
        CodesFormatError
            If the file is damaged, truncated, foreign or newer.
        ValueError
            If the file's store differs in its layout.

        See Also
        --------
        concatenate : Joins stores in memory.
        save : Writes a new file.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> with TemporaryDirectory() as folder:
        ...     packed.save(Path(folder) / "codes.skc")
        ...     packed[:1].append_to(Path(folder) / "codes.skc")
        ...     len(PackedCodes.load(Path(folder) / "codes.skc"))
        3
        """
        from skcompressae.packed import _files

        _files.append(self, path)

    def to_archive(self: Any) -> bytes:
        """Return the store entropy-coded.

        For cold storage, where bytes count more than time: it is lossless and has to be decoded before it can be
        searched. It is smaller than a saved file from some ten thousand rows on, at k = 32 from a thousand; of fewer,
        the tables of its model may take more than they save.

        Returns
        -------
        bytes
            To be written to a file as it is.

        See Also
        --------
        from_archive : Decodes it.
        archive_report : What it costs beside the entropy.
        save : A file that can be mapped.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> PackedCodes.from_archive(packed.to_archive()) == packed
        True
        """
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[0]

    def archive_report(self: Any) -> dict[str, float]:
        """Return the size of the archive beside the entropy of what it holds.

        It tells how near the archive comes to what its model of the codes allows, and to what any coder would need if
        indices were drawn at random.

        Returns
        -------
        dict
            ``bytes`` of the whole archive; and, per nonzero, ``bytes_per_nonzero``, ``entropy_bytes``
            (empirical entropy of words under the archive's contexts, with raw bits and scales, without
            tables) and ``set_bytes`` (``log2(binomial(n_components, k))`` for the indices of each row as a
            set, equally likely).

        See Also
        --------
        to_archive : Makes the archive.
        bytes_per_row : Bytes of a row in memory.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> rng = np.random.RandomState(0)
        >>> codes = rng.standard_normal((500, 64)) * (rng.uniform(size=(500, 64)) < 0.1)
        >>> packed = PackedCodes.pack(codes)
        >>> report = packed.archive_report()
        >>> sorted(report)
        ['bytes', 'bytes_per_nonzero', 'entropy_bytes', 'set_bytes']
        >>> report["bytes"] < packed.nbytes
        True
        """
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[1]

    @classmethod
    def from_archive(cls, archive: bytes | bytearray | memoryview | str | os.PathLike[str]) -> PackedCodes:
        """Read what :meth:`to_archive` made, or a file that holds it.

        Every checksum is verified before a row is decoded, so what comes back is what was archived.

        Parameters
        ----------
        archive : bytes-like or path-like
            What `to_archive` returned, or the file that it was written to.

        Returns
        -------
        PackedCodes
            The same store.

        Raises
        ------
        CodesFormatError
            If it is damaged, truncated, foreign or newer.

        See Also
        --------
        to_archive : Makes the archive.
        load : Reads the file of :meth:`save`.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> PackedCodes.from_archive(packed.to_archive()) == packed
        True
        """
        from skcompressae.packed import _archiving

        return _archiving.from_archive(archive)

    def to_arrow(self: Any) -> pa.Table:
        """Return the codes as an Arrow table.

        The columns "indices" and "values" are lists, as other engines read them. The quantiser stands in the schema's
        metadata, so that nothing is lost on the way back. Needs pyarrow (extra ``arrow``).

        Returns
        -------
        pyarrow.Table
            One row a code; the quantizer is in the schema's metadata.

        See Also
        --------
        from_arrow : The way back.
        skcompressae.arrow.ArrowEncoder : From embeddings to such columns.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> table = packed.to_arrow()
        >>> table.column_names, table.num_rows
        (['indices', 'values'], 2)
        """
        from skcompressae.packed import _arrow

        return _arrow.to_arrow(self)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, n_threads: int = 1) -> PackedCodes:
        """Pack a table of :meth:`to_arrow` again.

        Also after a round trip through Parquet, as long as the schema's metadata are kept: then the store comes back
        equal.

        Parameters
        ----------
        table : pyarrow.Table
            As `to_arrow` made it.
        n_threads : int, default=1
            Threads that pack blocks of rows.

        Returns
        -------
        PackedCodes
            The store.

        Raises
        ------
        CodesFormatError
            If the table does not hold packed codes, or values that its quantiser does not have: joined tables keep the
            quantiser of the first.

        See Also
        --------
        to_arrow : Makes the table.
        skcompressae.arrow.codes_from_arrow : Code columns as a matrix.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> table = packed.to_arrow()
        >>> PackedCodes.from_arrow(table) == packed
        True
        """
        from skcompressae.packed import _arrow

        return _arrow.from_arrow(table, n_threads=n_threads)
