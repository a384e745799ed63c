"""The `llmsql` command: SQL with LLM calls over files."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import duckdb

import llmsql
from llmsql.errors import LlmsqlError
from llmsql.failures import LlmsqlWarning
from llmsql.result_cache import CacheWarning
from llmsql.session import Session

FETCHED_AT_A_TIME = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0, 1 after an error of the query, 2 after one of the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "serve":
        from llmsql.serving.command import serve

        return serve(arguments[1:])
    options = _parser().parse_args(arguments)
    if options.format == "parquet" and options.output is None:
        print("llmsql: --format parquet needs --output FILE", file=sys.stderr)
        return 2
    sql = sys.stdin.read() if options.sql == "-" else options.sql
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _connected(sql, options)


def _connected(sql: str, options: argparse.Namespace) -> int:
    try:
        names = ("device", "dtype", "kv_memory", "cache", "engine", "tls_root")
        settings = {name: value for name in names if (value := getattr(options, name))}
        if options.no_cache:
            settings["cache"] = False
        with llmsql.connect(
            options.database, model=options.model, progress=not options.no_progress, **settings
        ) as session:
            if options.explain:
                print(session.explain(sql))
            elif options.dry_run:
                print(session.dry_run(sql))
            else:
                _run(session, sql, options)
    except (LlmsqlError, duckdb.Error, OSError) as problem:
        print(f"llmsql: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        print(f"llmsql: {problem or 'stopped'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmsql",
        description="Run SQL with llm(...), llm_filter(...) and llm_classify(...) over files, with a local model.",
        epilog="`llmsql serve MODEL` serves a model to other processes. "
        "Example: llmsql \"SELECT llm_filter('Is it positive?', text) AS positive FROM 'reviews.csv'\"",
    )
    parser.add_argument("sql", help="the statement, or - to read it from standard input")
    parser.add_argument("--model", help="a model folder or hub id (default: the demo model, a toy)")
    parser.add_argument("--engine", help="'process', 'node', or grpc://host:port; its token comes from $LLMSQL_TOKEN")
    parser.add_argument("--tls-root", metavar="FILE", help="who signed the certificate of a grpc+tls:// engine (PEM)")
    parser.add_argument("--database", default=":memory:", help="a DuckDB database file (default: in memory)")
    parser.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    parser.add_argument("--output", metavar="FILE", help="where to write (default: standard output)")
    parser.add_argument("--explain", action="store_true", help="show the plan and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="show what would be asked; the weights are not loaded")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar and no summary on standard error")
    parser.add_argument("--cache", metavar="FILE", help="where answers are kept (default: the user's cache folder)")
    parser.add_argument("--no-cache", action="store_true", help="neither use answers of before nor keep new ones")
    parser.add_argument("--device", help="auto, cpu or cuda")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--kv-memory", help="memory for the KV cache, such as 2GiB")
    parser.add_argument("--version", action="version", version=f"llmsql {llmsql.__version__}")
    return parser


def _run(session: Session, sql: str, options: argparse.Namespace) -> None:
    if options.format in ("table", "parquet"):
        relation = session.sql(sql)
        if relation is not None and options.format == "parquet":
            relation.write_parquet(options.output)
        elif relation is not None:
            _write(options.output, lambda file: print(relation, file=file))
    else:
        session.execute(sql)
        write = _write_csv if options.format == "csv" else _write_json
        _write(options.output, lambda file: write(session, file))
    if session.last_query.stages and not options.no_progress:
        print(session.last_query.report(), file=sys.stderr)


def _write(path: str | None, write: Any) -> None:
    if path is None:
        write(sys.stdout)
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        write(file)


def _rows(session: Session) -> Iterator[tuple[Any, ...]]:
    while rows := session.fetchmany(FETCHED_AT_A_TIME):
        yield from rows


def _names(session: Session) -> list[str]:
    return [column[0] for column in session.description or []]


def _write_csv(session: Session, file: TextIO) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_names(session))
    for row in _rows(session):
        writer.writerow([json.dumps(v, default=str) if isinstance(v, (dict, list)) else v for v in row])


def _write_json(session: Session, file: TextIO) -> None:
    names = _names(session)
    separator = "["
    for row in _rows(session):
        file.write(separator + json.dumps(dict(zip(names, row)), default=str, ensure_ascii=False))
        separator = ",\n"
    file.write("[]\n" if separator == "[" else "]\n")


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, (LlmsqlWarning, CacheWarning)):
        print(f"llmsql: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
