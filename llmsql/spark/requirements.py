"""What the Spark side needs beside llmsql itself: pyspark, and Java."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from llmsql.errors import LlmsqlError

MINIMUM_PYSPARK = (3, 5)
CONNECT = (4, 0)  # the first Spark Connect whose DataFrames are of the same classes, and can be checkpointed
ARROW_UDF = (4, 1)  # the first Spark that has iterator UDFs over Arrow
QUALIFY = (4, 3)  # a Spark that has it
MINIMUM_JAVA = 17  # also of Spark 3.5, which could do with less
# Spark 4 asks for this module at its start; some cut-down Java runtimes lack it.
JAVA_MODULE = "jdk.incubator.vector"


def pyspark_version() -> tuple[int, ...]:
    """Major and minor version of pyspark.

    Raises:
        ImportError: there is none.
    """
    from pyspark import __version__ as version

    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_pyspark() -> None:
    """Nothing, when pyspark is there and recent enough.

    Raises:
        LlmsqlError: pyspark is missing or too old; the message says how to install it.
    """
    try:
        found = pyspark_version()
    except ImportError as problem:
        raise LlmsqlError("llmsql.spark needs pyspark: pip install 'llmsql[spark]'") from problem
    if found < MINIMUM_PYSPARK:
        wanted, version = (".".join(map(str, numbers)) for numbers in (MINIMUM_PYSPARK, found))
        raise LlmsqlError(
            f"llmsql.spark needs pyspark {wanted} or later, found {version}: pip install --upgrade 'llmsql[spark]'"
        )


def is_connect(spark: object) -> bool:
    """Whether a session is one of Spark Connect, which has no JVM beside it."""
    return type(spark).__module__.startswith("pyspark.sql.connect.")


def check_java() -> str:
    """The path of the Java that Spark will start: that of $JAVA_HOME, or the first on $PATH.

    Raises:
        LlmsqlError: there is no Java, it is too old, or it lacks a module that Spark needs.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    advice = f"install Java {MINIMUM_JAVA} or later (a full runtime) and put it on PATH, or set JAVA_HOME"
    if java is None:
        raise LlmsqlError(f"Spark needs Java, and there is no java on PATH: {advice}")
    try:
        answer = subprocess.run(
            [java, "--add-modules", JAVA_MODULE, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise LlmsqlError(f"Spark needs Java, and {java} cannot be run ({problem}): {advice}") from problem
    version = re.search(r'version "(\d+)', answer.stderr)
    if answer.returncode != 0 or version is None or int(version.group(1)) < MINIMUM_JAVA:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        raise LlmsqlError(f"Spark cannot use {java} ({said[0] if said else 'it says nothing'}): {advice}")
    return java
