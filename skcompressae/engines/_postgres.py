"""PostgreSQL with pgvector 0.7 or newer: codes as `sparsevec`, with signs, bulk-loaded by binary COPY."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from skcompressae.engines._validation import check_codes, check_count, check_ids, import_engine, rows_of, to_arrays

__all__ = ["PostgresIndex"]

# pgvector's limits: SPARSEVEC_MAX_NNZ, and the range of hnsw.ef_search
_MAX_NONZEROS = 16_000
_MAX_EF_SEARCH = 1_000
# Rows written to the COPY stream at once: 2 MB at 32 nonzeros.
_COPY_ROWS = 8_192
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"


class _Metric(NamedTuple):
    operator: str
    operator_class: str


# `<#>` is the negative inner product, `<=>` one minus the cosine
_METRICS = {"dot": _Metric("<#>", "sparsevec_ip_ops"), "cosine": _Metric("<=>", "sparsevec_cosine_ops")}


class PostgresIndex:
    """Signed codes in a PostgreSQL table, searched exactly by scan or approximately by HNSW.

    Every method runs in a transaction of its own, or in a savepoint of the caller's where one is open.

    Parameters
    ----------
    connection : psycopg.Connection
        It stays open, it is the caller's.
    n_components : int
        Width of the codes.
    table : str, default="codes"
        Created where there is none, with the columns ``id bigint PRIMARY KEY`` and ``code sparsevec(n_components)``;
        a table with these columns and more, all of which may be left out of an insert, serves as well. Rows whose
        ``code`` is NULL are found by no search; ``len`` counts them.
    schema : str or None, default=None
        None goes by the connection's search path.
    metric : {"dot", "cosine"}, default="dot"
        "dot" for ``norm="unit"`` codes and queries of ``transform_query``; "cosine" compares code with code.

    Raises
    ------
    ValueError
        If a parameter is not as described, or the table has other columns.
    RuntimeError
        If the server's pgvector has no `sparsevec`.

    See Also
    --------
    QdrantIndex : The same in Qdrant.
    MilvusIndex : The same in Milvus.
    skcompressae.CompresSAETransformer.transform_query : Queries of best recall.

    Notes
    -----
    The role needs the right to ``CREATE EXTENSION vector`` and to create the table unless that is done. HNSW refuses
    codes of more than 1,000 nonzeros (queries may have more) and loses neighbours; the exact scan reads the whole table
    for every query.

    Examples
    --------
    >>> import psycopg
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import PostgresIndex
    >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
    >>> connection = psycopg.connect("dbname=codes")  # doctest: +SKIP
    >>> index = PostgresIndex(connection, n_components=3)  # doctest: +SKIP
    >>> index.add(codes)  # doctest: +SKIP
    >>> index.search(codes[:1], n_neighbors=2)[1]  # doctest: +SKIP
    array([[0, 1]])
    """

    def __init__(
        self,
        connection: Any,
        n_components: int,
        *,
        table: str = "codes",
        schema: str | None = None,
        metric: Literal["dot", "cosine"] = "dot",
    ) -> None:
        module = import_engine("psycopg", package="psycopg", extra="postgres", caller="PostgresIndex")
        self._sql = import_engine("psycopg.sql", package="psycopg", extra="postgres", caller="PostgresIndex")
        self._psycopg = module
        if not isinstance(connection, module.Connection):
            raise TypeError(f"connection must be a psycopg.Connection; got {type(connection).__name__}.")
        if metric not in _METRICS:
            raise ValueError(f"metric must be 'dot' or 'cosine'; got {metric!r}.")
        for name, value in (("table", table), ("schema", schema)):
            if value is not None and (not isinstance(value, str) or not value or "\0" in value):
                raise ValueError(f"{name} must be a non-empty string without NUL characters; got {value!r}.")
        self.n_components = check_count(n_components, "n_components")
        self.metric = metric
        self.connection = connection
        self._metric = _METRICS[metric]
        self._table = self._sql.Identifier(*([table] if schema is None else [schema, table]))
        self._create()

    def add(self, codes: Any, ids: ArrayLike | None = None) -> None:
        """Load codes into the table.

        One binary COPY in one transaction: all of the codes are stored, or none.

        Parameters
        ----------
        codes : sparse matrix, PackedCodes or array-like of shape (n_documents, n_components)
            Store ``norm="unit"`` codes where queries come from ``transform_query``.
        ids : array-like of int of shape (n_documents,), default=None
            Distinct. None numbers the documents of an empty table from 0.

        Raises
        ------
        ValueError
            If `codes` are not finite, of another width or of more than 16,000 nonzeros, or `ids` are not one distinct
            number per row.
        TypeError
            If `ids` are not integers.
        psycopg.errors.UniqueViolation
            If an id is in the table already.

        See Also
        --------
        search : Finds them.
        create_hnsw : Indexes them.

        Examples
        --------
        >>> import psycopg
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import PostgresIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> connection = psycopg.connect("dbname=codes")  # doctest: +SKIP
        >>> index = PostgresIndex(connection, n_components=3)  # doctest: +SKIP
        >>> index.add(codes, ids=[7, 8])  # doctest: +SKIP
        >>> len(index)  # doctest: +SKIP
        2
        """
        checked = _check_nonzeros(check_codes(codes, self.n_components), "codes")
        numbers = check_ids(ids, checked.shape[0], n_stored=len(self) if ids is None else 0)
        statement = self._format("COPY {table} (id, code) FROM STDIN (FORMAT BINARY)")
        with self.connection.transaction(), self._cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(_COPY_HEADER)
            for start in range(0, checked.shape[0], _COPY_ROWS):
                for block in _copy_tuples(numbers[start : start + _COPY_ROWS], checked[start : start + _COPY_ROWS]):
                    copy.write(block)
            copy.write(_COPY_TRAILER)

    def create_hnsw(self, *, m: int = 16, ef_construction: int = 64) -> None:
        """Build an HNSW index for this metric.

        Build it after loading: that is faster than growing it row by row. Later rows are added to it by the server.

        Parameters
        ----------
        m : int, default=16
            Links per node.
        ef_construction : int, default=64
            Candidates per insertion, at least ``2 * m``.

        Raises
        ------
        ValueError
            If a parameter is out of range.
        psycopg.errors.ProgramLimitExceeded
            If a stored code has more than 1,000 nonzeros.

        See Also
        --------
        search : With `ef_search`, uses it.
        add : Loads codes.

        Examples
        --------
        >>> import psycopg
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import PostgresIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> connection = psycopg.connect("dbname=codes")  # doctest: +SKIP
        >>> index = PostgresIndex(connection, n_components=3)  # doctest: +SKIP
        >>> index.add(codes)  # doctest: +SKIP
        >>> index.create_hnsw(m=16, ef_construction=64)  # doctest: +SKIP
        >>> index.search(codes[:1], n_neighbors=1, ef_search=10)[1]  # doctest: +SKIP
        array([[0]])
        """
        m = check_count(m, "m", max_value=100)
        ef_construction = check_count(ef_construction, "ef_construction", max_value=1_000)
        if m < 2 or ef_construction < 2 * m:
            raise ValueError(f"m must be at least 2 and ef_construction at least 2 * m; got {m} and {ef_construction}.")
        statement = self._format(
            "CREATE INDEX ON {table} USING hnsw (code {operator_class}) WITH (m = {m}, ef_construction = {ef})",
            operator_class=self._sql.Identifier(self._metric.operator_class),
            m=self._sql.Literal(m),
            ef=self._sql.Literal(ef_construction),
        )
        with self.connection.transaction():
            self._execute(statement)

    def search(
        self, queries: Any, n_neighbors: int = 10, *, ef_search: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the documents of largest dot product or cosine.

        Each call is held to the scan or to the index, whatever the planner would prefer, so exactness does not depend
        on the size of the table.

        Parameters
        ----------
        queries : sparse matrix, PackedCodes or array-like of shape (n_queries, n_components)
            Codes, or rows of ``transform_query``.
        n_neighbors : int, default=10
            Documents returned for each query, at most.
        ef_search : int or None, default=None
            None scans the table: exact. An integer between `n_neighbors` and 1,000 searches the index of
            :meth:`create_hnsw` with that many candidates: approximate.

        Returns
        -------
        scores : ndarray of shape (n_queries, n_neighbors), float32
            Dot products or cosines, descending; -inf where there are fewer documents.
        ids : ndarray of shape (n_queries, n_neighbors), int64
            -1 where there are fewer documents. By cosine, all-zero documents and queries have no neighbours.

        Raises
        ------
        ValueError
            If `queries` are not finite, of another width or of more than 16,000 nonzeros, `n_neighbors` or `ef_search`
            is out of range, or there is no HNSW index for the metric.

        See Also
        --------
        create_hnsw : Needed for `ef_search`.
        skcompressae.CompresSAETransformer.transform_query : Queries of best recall.

        Examples
        --------
        >>> import psycopg
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import PostgresIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> connection = psycopg.connect("dbname=codes")  # doctest: +SKIP
        >>> index = PostgresIndex(connection, n_components=3)  # doctest: +SKIP
        >>> index.add(codes)  # doctest: +SKIP
        >>> scores, ids = index.search(csr_matrix([[0.0, 0.0, 1.0]]), n_neighbors=2)  # doctest: +SKIP
        >>> scores, ids  # doctest: +SKIP
        (array([[2., 0.]], dtype=float32), array([[1, 0]]))
        """
        checked = _check_nonzeros(check_codes(queries, self.n_components, name="queries"), "queries")
        n_neighbors = check_count(n_neighbors, "n_neighbors")
        if ef_search is not None:
            ef_search = check_count(ef_search, "ef_search", max_value=_MAX_EF_SEARCH)
            if ef_search < n_neighbors:
                raise ValueError(f"ef_search={ef_search} must be at least n_neighbors={n_neighbors}.")
            if not self._has_hnsw():
                raise ValueError(f"ef_search needs an HNSW index for metric={self.metric!r}: call create_hnsw() first.")
        statement = self._format(
            "SELECT id, code {operator} %(query)s::sparsevec AS distance FROM {table} WHERE code IS NOT NULL "
            "ORDER BY distance LIMIT %(n)s",
            operator=self._sql.SQL(self._metric.operator),
            # beside parameters a percent sign is written twice, in names too
            table=self._sql.SQL(self._table.as_string(self.connection).replace("%", "%%")),
        )
        hits = []
        # Rolled back, as settings of a transaction within the caller's would last as long as that.
        with self.connection.transaction(force_rollback=True):
            self._set_plan(ef_search)
            for text in _texts(checked):
                # Not prepared: the server keeps the plan of a prepared statement, be it the scan's or the index's,
                # and would use it whatever the settings are.
                rows = self._execute(statement, {"query": text, "n": n_neighbors}, prepare=False)
                scored = [(-distance if self.metric == "dot" else 1.0 - distance, id_) for id_, distance in rows]
                hits.append([(score, id_) for score, id_ in scored if not math.isnan(score)])
        return to_arrays(hits, checked.shape[0], n_neighbors)

    def __len__(self) -> int:
        """Return the number of rows of the table, those without a code too: `add` may not take their ids."""
        with self.connection.transaction():
            return int(self._value("SELECT count(*) FROM {table}"))

    def _create(self) -> None:
        with self.connection.transaction():
            if self._value("SELECT to_regtype('sparsevec')") is None:
                self._execute("CREATE EXTENSION IF NOT EXISTS vector")
            if self._value("SELECT to_regtype('sparsevec')") is None:
                raise RuntimeError(
                    "PostgresIndex needs the type sparsevec of pgvector 0.7 or newer on the search path; the server's "
                    f"is {self._value('SELECT extversion FROM pg_extension WHERE extname = %s', 'vector')}."
                )
            name = self._table.as_string(self.connection)
            if self._value("SELECT to_regclass(%s)", name) is None:  # else a role that may only read would fail
                self._execute(
                    self._format(
                        "CREATE TABLE IF NOT EXISTS {table} (id bigint PRIMARY KEY, code sparsevec({width}) NOT NULL)",
                        width=self._sql.Literal(self.n_components),
                    )
                )
            columns = self._execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = to_regclass(%s) AND attname IN ('id', 'code')",
                [name],
            ).fetchall()
            types = {_as_text(column): _as_text(kind) for column, kind in columns}
            expected = {"id": "bigint", "code": f"sparsevec({self.n_components})"}
            if types != expected:
                raise ValueError(f"table {name} must have the columns {expected}; got {types}.")

    def _set_plan(self, ef_search: int | None) -> None:
        """Hold the planner to the scan or to the index, whatever was set before, until the transaction ends."""
        scan, index = ("on", "off") if ef_search is None else ("off", "on")
        settings = {"enable_seqscan": scan, "enable_sort": scan, "enable_indexscan": index}
        if ef_search is not None:
            settings["hnsw.ef_search"] = str(ef_search)
        calls = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        self._execute(f"SELECT {calls}", [text for setting in settings.items() for text in setting])

    def _has_hnsw(self) -> bool:
        with self.connection.transaction():
            return bool(
                self._value(
                    "SELECT count(*) FROM pg_index JOIN pg_opclass ON pg_opclass.oid = indclass[0] "
                    "JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] "
                    "WHERE indrelid = to_regclass(%s) AND indisvalid AND indpred IS NULL AND attname = 'code' "
                    "AND opcname = %s AND opcmethod = (SELECT oid FROM pg_am WHERE amname = 'hnsw')",
                    self._table.as_string(self.connection),
                    self._metric.operator_class,
                )
            )

    def _cursor(self) -> Any:
        """Return a cursor whose rows are tuples and whose placeholders are %s, whatever the connection's would be."""
        kind, raw = self.connection.cursor_factory, getattr(self._psycopg, "RawCursor", None)
        kind = self._psycopg.Cursor if raw is not None and issubclass(kind, raw) else kind
        return kind(self.connection, row_factory=self._psycopg.rows.tuple_row)

    def _execute(self, statement: Any, arguments: Any = None, **options: Any) -> Any:
        return self._cursor().execute(statement, arguments, **options)

    def _format(self, template: str, **parts: Any) -> Any:
        return self._sql.SQL(template).format(**{"table": self._table, **parts})

    def _value(self, template: str, *arguments: Any) -> Any:
        """Return the first value of the first row, or None."""
        row = self._execute(self._format(template), arguments or None).fetchone()
        return None if row is None else row[0]


def _as_text(value: str | bytes) -> str:
    """Decode a text of the server, which psycopg leaves as bytes where the database has no encoding (SQL_ASCII)."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _check_nonzeros(codes: csr_matrix, name: str) -> csr_matrix:
    most = int(np.diff(codes.indptr).max(initial=0))
    if most > _MAX_NONZEROS:
        raise ValueError(f"{name} must have at most {_MAX_NONZEROS} nonzeros per row, pgvector's limit; got {most}.")
    return codes


def _texts(queries: csr_matrix) -> Iterator[str]:
    """Yield rows as pgvector writes them, ``{1:0.5,7:-2}/8``: indices from 1, nine digits hold a float32 exactly."""
    for indices, values in rows_of(queries):
        entries = ",".join(f"{i}:{v:.9g}" for i, v in zip((indices + 1).tolist(), values.tolist(), strict=True))
        yield f"{{{entries}}}/{queries.shape[1]}"


def _copy_tuples(ids: NDArray[np.int64], codes: csr_matrix) -> Iterator[bytes]:
    """Yield the tuples (id, code) of a binary COPY stream, rows of equal length together.

    All numbers are big-endian. A tuple is its number of fields (int16), then per field its size in bytes (int32) and
    its bytes. A `sparsevec` is its width, its number of nonzeros and an unused zero (int32), the indices from 0
    (int32), the values (float32).
    """
    n_nonzeros = np.diff(codes.indptr)
    for length in np.unique(n_nonzeros).tolist():
        rows = np.flatnonzero(n_nonzeros == length)
        entries = codes.indptr[rows][:, np.newaxis] + np.arange(length)
        record = np.dtype(
            [
                ("n_fields", ">i2"),
                ("id_size", ">i4"),
                ("id", ">i8"),
                ("code_size", ">i4"),
                ("width", ">i4"),
                ("length", ">i4"),
                ("unused", ">i4"),
                ("indices", ">i4", (length,)),
                ("values", ">f4", (length,)),
            ]
        )
        tuples = np.zeros(len(rows), dtype=record)
        tuples["n_fields"], tuples["id_size"], tuples["id"] = 2, 8, ids[rows]
        tuples["code_size"] = 12 + 8 * length
        tuples["width"], tuples["length"] = codes.shape[1], length
        tuples["indices"], tuples["values"] = codes.indices[entries], codes.data[entries]
        yield tuples.tobytes()
