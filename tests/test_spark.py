"""Spark: the same answers as DuckDB's plain functions, partition by partition, and errors that can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import llmsql
from llmsql import CallError, LlmsqlError, ModelError, SettingError
from llmsql.connection import connect, register
from llmsql.functions import make_call
from llmsql.serving.server import EngineServer
from llmsql.settings import Settings
from llmsql.testing import FakeModel

pytest.importorskip("pyspark", reason="the Spark tests need pyspark: pip install 'llmsql[spark]'")

from pyspark import cloudpickle
from pyspark.sql import functions as F
from spark_session import frame_of, local_session

import llmsql.spark
from llmsql.spark import llm, llm_agg, llm_classify, llm_extract, llm_filter
from llmsql.spark.partition import PartitionFunction
from llmsql.spark.requirements import check_java, check_pyspark
from llmsql.spark.worker_models import IDLE_SECONDS, placed, worker_models

pytestmark = pytest.mark.spark

ROWS = [
    (1, "red rose", 4.5, "a"),
    (2, "blue whale", None, "b"),
    (3, None, None, None),
    (4, "red rose", 4.5, "a"),
    (5, "", 0.0, 'é "quoted"\n'),
    (6, None, 2.0, "b"),
]
COLUMNS = ("id", "title", "rating", "kind")


def describe(prompt, fields, options):
    """A pure function of all that a model is given."""
    seen = f"{prompt}|" + "|".join(f"{name}={value!r}" for name, value in sorted(fields.items()))
    return options["choices"][len(seen) % len(options["choices"])] if "choices" in options else seen


@pytest.fixture(scope="module")
def spark(tmp_path_factory):
    try:
        check_java()
    except LlmsqlError as problem:
        pytest.skip(str(problem))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    engines = tmp_path_factory.mktemp("run") / "d"  # where engine processes leave their traces
    with mock.patch.dict(os.environ, LLMSQL_RUNTIME_DIR=str(engines)):
        os.environ.pop("PYSPARK_PYTHON", None)  # `register` sees to it that workers find llmsql
        session = local_session(tmp_path_factory.mktemp("warehouse"))
        types = (pa.int32(), pa.string(), pa.float64(), pa.string())
        table = pa.table([pa.array(column, kind) for column, kind in zip(zip(*ROWS), types)], names=COLUMNS)
        frame_of(session, table).coalesce(1).createOrReplaceTempView("t")
        yield session
        pids = [json.loads(file.read_text())["pid"] for file in engines.glob("*.json")]
        assert all(runs(pid) for pid in pids), "idle workers hold their engines"
        session.stop()
        end = time.monotonic() + 60
        while any(runs(pid) for pid in pids):
            assert time.monotonic() < end, "engine processes outlive the application"
            time.sleep(0.05)
        assert not [file for file in engines.glob("*") if file.suffix != ".lock"]
    with pytest.raises(LlmsqlError, match=r"no model yet: call llmsql\.spark\.register"):
        llm("Say", "title")


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def answers(frame):
    return sorted(tuple(row) for row in frame.collect())


def spark_error(frame):
    with pytest.raises(Exception) as caught:  # noqa: PT011 pyspark raises classes of its own
        frame.collect()
    return str(caught.value)


# How each dialect writes structs and lists.
DUCKDB = {"title": "{'title': title}", "named": "{'a': title, 'b': rating}", "labels": "['x', 'y', 'z']"}
SPARK = {"title": "struct(title)", "named": "named_struct('a', title, 'b', rating)", "labels": "array('x', 'y', 'z')"}


class TestSameAsDuckDB:
    CALLS = (
        "llm('Say', title, {title}, rating)",
        "llm_filter('Is it?', {named}, kind)",
        "llm_classify('Which?', {labels}, rating, kind)",
        "llm(concat('About ', kind), title)",
    )

    @pytest.fixture
    def con(self):
        with duckdb.connect() as con:
            con.execute("CREATE TABLE t (id INT, title TEXT, rating DOUBLE, kind TEXT)")
            con.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
            registration = register(con, model=FakeModel(describe))
            yield con
            registration.remove()

    def select(self, forms):
        return "SELECT id, " + ", ".join(call.format(**forms) for call in self.CALLS) + " FROM t"

    def test_sql(self, spark, con):
        llmsql.spark.register(spark, model=FakeModel(describe))
        frame = spark.sql(self.select(SPARK))
        assert [kind for _, kind in frame.dtypes] == ["int", "string", "boolean", "string", "string"]
        assert answers(frame) == sorted(con.execute(self.select(DUCKDB)).fetchall())

    def test_filters_run_on_what_other_predicates_leave(self, spark, con):
        llmsql.spark.register(spark, model=FakeModel(describe))
        sql = "SELECT id, llm('Say', title) FROM t WHERE id < 6 AND llm_filter('Is it?', title, kind)"
        expected = sorted(con.execute(sql).fetchall())
        assert answers(spark.sql(sql)) == expected
        assert 0 < len(expected) < 5

    def test_columns(self, spark, con):
        llmsql.spark.register(spark, model=FakeModel(describe))
        frame = spark.table("t").select(
            "id",
            llm("Say", "title", F.col("rating").alias("stars")),
            llm_filter("Is it?", F.struct(F.col("title").alias("a"), F.col("rating").alias("b")), "t.kind"),
            llm_classify("Which of {Title} and {kind}, {title}?", ["x", "y"]),
            llm("All", "*"),
        )
        expected = con.execute(
            """SELECT id, llm('Say', {'title': title, 'stars': rating}),
            llm_filter('Is it?', {'a': title, 'b': rating, 'kind': kind}),
            llm_classify('Which of {Title} and {kind}, {title}?', ['x', 'y'], {'title': title, 'kind': kind}),
            llm('All', {'id': id, 'title': title, 'rating': rating, 'kind': kind}) FROM t"""
        ).fetchall()
        assert answers(frame) == sorted(expected)

    def test_options_reach_the_model(self, spark):
        model = FakeModel(lambda prompt, fields, options: repr(sorted(options.items())))
        llmsql.spark.register(spark, model=model)
        options = {"max_tokens": 3, "temperature": 0.5, "seed": 7, "system": "Be brief"}
        column = llm("Say", "title", **options, on_error="fail", reorder=False)
        expected = repr(sorted({"function": "llm", **options}.items()))
        assert {value for (value,) in answers(spark.table("t").filter("id = 1").select(column))} == {expected}


class TestNull:
    def test_rules(self, spark):
        llmsql.spark.register(spark, model=FakeModel(describe))
        said = dict(answers(spark.sql("SELECT id, llm('Say', struct(title, rating)) FROM t")))
        assert said[3] is None
        assert said[2] == "Say|title='blue whale'"
        assert said[6] == "Say|rating=2.0"
        assert llmsql.spark.statistics(spark).model_calls == 4  # of six rows one is all NULL, and two are equal

    def test_null_prompt_and_null_struct(self, spark):
        llmsql.spark.register(spark, model=FakeModel(describe))
        sql = "SELECT llm(CAST(NULL AS STRING), title), llm('Say', if(id < 9, NULL, struct(title))) FROM t"
        assert set(answers(spark.sql(sql))) == {(None, None)}
        assert llmsql.spark.statistics(spark).model_calls == 0


class TestPartitions:
    def test_equal_rows_are_asked_once_in_a_partition(self, spark, tmp_path):
        def note(prompt, fields, options, folder=str(tmp_path)):
            with open(f"{folder}/{os.getpid()}", "a") as notes:
                notes.write(fields["field1"] + "\n")
            return fields["field1"].upper()

        llmsql.spark.register(spark, model=FakeModel(note))
        spark.range(0, 300, 1, 2).createOrReplaceTempView("numbers")
        with_batches_of(spark, 40)
        frame = spark.sql("SELECT id, llm('Shout', concat('v', id % 5)) FROM numbers")
        assert answers(frame) == [(number, f"V{number % 5}") for number in range(300)]
        asked = [line for file in tmp_path.iterdir() for line in file.read_text().splitlines()]
        assert sorted(asked) == sorted(2 * [f"v{number}" for number in range(5)])
        (stage,) = llmsql.spark.statistics(spark).stages
        assert (stage.rows, stage.distinct, stage.asked) == (300, 10, 10)

    def test_odd_batches_buffers_and_empty_partitions(self, spark):
        llmsql.spark.register(spark, model=FakeModel(describe), batch_rows=16)
        with_batches_of(spark, 7)
        frame = spark.range(0, 101, 1, 3).filter("id < 33 OR id >= 67")  # the middle partition is empty
        expected = [(number, f"Say|id={number}") for number in range(101) if not 33 <= number < 67]
        assert answers(frame.select("id", llm("Say", "id"))) == expected
        assert frame.filter("id < 0").select(llm("Say", "id")).collect() == []

    @given(
        lengths=st.lists(st.integers(0, 5), max_size=9),
        batch_rows=st.integers(1, 12),
        bare=st.booleans(),
        seed=st.randoms(use_true_random=False),
    )
    @examples(max_examples=60, deadline=None)
    def test_batches_come_back_as_they_went_in(self, lengths, batch_rows, bare, seed):
        counters = SimpleNamespace(add=lambda part: None)
        call = make_call("llm", "Say") if bare else None
        settings = Settings(batch_rows=batch_rows)
        function = PartitionFunction("llm", call, FakeModel(describe), settings, counters)
        values = [[seed.choice([None, "a", "b", "c"]) for _ in range(length)] for length in lengths]
        texts = [pa.array(part, pa.string()) for part in values]
        structs = [pa.StructArray.from_arrays([text], names=["x"]) for text in texts]
        prompts = [pa.array(["Say"] * length, pa.string()) for length in lengths]
        batches = structs if bare else list(zip(prompts, structs))
        given_back = [part.to_pylist() for part in function.values(iter(batches))]
        assert given_back == [[None if v is None else f"Say|x={v!r}" for v in part] for part in values]


class TestErrors:
    @pytest.fixture(autouse=True)
    def registered(self, spark):
        def sometimes(prompt, fields, options):
            if fields.get("title") == "blue whale":
                raise ValueError("too blue")
            return "Yes"

        llmsql.spark.register(spark, model=FakeModel(sometimes))

    def test_wrong_columns_fail_on_the_driver(self):
        with pytest.raises(CallError, match="no option 'max_token'; did you mean 'max_tokens'"):
            llm("Say", "title", max_token=3)
        with pytest.raises(
            CallError, match=r"llm_classify has no option 'label'; did you mean 'labels'\? .*: labels, "
        ):
            llm_classify("Which?", "title", label=["x"])
        with pytest.raises(CallError, match="llm_extract has no option 'shema'; did you mean 'schema'"):
            llm_extract("Who?", "title", shema="STRUCT(a INT)")
        with pytest.raises(CallError, match="llm_agg has no option 'retun_type'; its options are: distinct_rows, "):
            llm_agg("Sum", "title", retun_type="INT")
        with pytest.raises(CallError, match="'on_error' must be 'null', 'fail' or 'return'"):
            llm_filter("Is it?", "title", on_error="stop")
        with pytest.raises(CallError, match=r"llm_filter has no field to ask about: .*\{review\}"):
            llm_filter("Is it?")
        with pytest.raises(CallError, match="labels given twice: 'x'"):
            llm_classify("Which?", ["x", "x"], "title")
        with pytest.raises(CallError, match="labels must be a list of texts"):
            llm_classify("Which?", "x", "title")
        with pytest.raises(CallError, match=r"placeholder \{plot\} but the call has no such field"):
            llm("About {plot}", "title")
        with pytest.raises(CallError, match="prompt must be a text"):
            llm(F.col("title"), "title")
        with pytest.raises(CallError, match="a field must be a column's name or a Column, not 3"):
            llm("Say", 3)
        with pytest.raises(ModelError, match="there is no such folder"):
            llm("Say", "title", model="/no/such/model")

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ("llm('Say')", "CallError: llm has no field to ask about: llm(prompt, field…)"),
            ("llm_classify('Say', title)", "CallError: llm_classify has no field to ask about"),
            ("llm_classify('Which?', array('x', 'x'), title)", "CallError: llm_classify: labels given twice: 'x'"),
            ("llm_classify('Which?', 'x', title)", "CallError: llm_classify: labels must be a list of texts"),
            ("llm(struct(id), title)", "CallError: llm: the prompt must be a text, not struct<id: int32>"),
        ],
    )
    def test_wrong_sql_calls_say_so(self, spark, call, message):
        assert message in spark_error(spark.sql(f"SELECT {call} FROM t LIMIT 1"))

    def test_a_failed_row_is_null_with_its_reason(self, spark):
        is_fine = dict(answers(spark.table("t").select("id", llm_filter("Is it?", "title", "kind"))))
        assert [row for row, value in is_fine.items() if value is None] == [2, 3]
        (failure,) = llmsql.spark.statistics(spark).errors
        assert failure.values == {"title": "blue whale", "kind": "b"}
        assert failure.error == "ValueError: too blue"

    def test_on_error_fail_stops_with_the_values(self, spark):
        message = spark_error(spark.table("t").select(llm_filter("Is it?", "title", "kind", on_error="fail")))
        assert "RowError: llm_filter failed: ValueError: too blue; the row: title='blue whale', kind='b'" in message
        assert answers(spark.sql("SELECT llm('Say', title) FROM t WHERE id = 1")) == [("Yes",)]  # still usable

    def test_register(self, spark):
        with pytest.raises(SettingError, match="needs a SparkSession, not builtins"):
            llmsql.spark.register("spark")
        with pytest.raises(SettingError, match="did you mean 'batch_rows'"):
            llmsql.spark.register(spark, batch_row=3)
        with pytest.raises(ModelError, match="there is no such folder"):
            llmsql.spark.register(spark, model="/no/such/model")
        lock = threading.Lock()
        with pytest.raises(SettingError, match="FakeModel cannot be pickled"):
            llmsql.spark.register(spark, model=FakeModel(lambda prompt, fields, options: str(lock)))
        with pytest.raises(LlmsqlError, match="no LLM functions"):
            llmsql.spark.statistics(spark.newSession())
        assert llmsql.spark.register(spark, model=FakeModel(describe)).spark is spark


class TestRequirements:
    def test_llmsql_does_not_import_pyspark(self):
        code = "import sys, llmsql, llmsql.connection; assert 'pyspark' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_pyspark_missing_or_old(self, monkeypatch):
        code = "import sys; sys.modules['pyspark'] = None; import llmsql; llmsql.spark"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "LlmsqlError: llmsql.spark needs pyspark: pip install 'llmsql[spark]'" in run.stderr
        monkeypatch.setattr("pyspark.__version__", "3.4.1")
        with pytest.raises(LlmsqlError, match=r"needs pyspark 3\.5 or later, found 3\.4"):
            check_pyspark()

    def test_java_missing_or_old(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        with pytest.raises(LlmsqlError, match=r"cannot be run .*: install Java 17"):
            check_java()
        java = tmp_path / "bin" / "java"
        java.parent.mkdir()
        java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
        java.chmod(0o755)
        with pytest.raises(LlmsqlError, match=r"cannot use .*11\.0\.2.*: install Java 17"):
            check_java()
        monkeypatch.delenv("JAVA_HOME")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(LlmsqlError, match="there is no java on PATH"):
            check_java()


class TestEngine:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return tiny_llama(tmp_path_factory.mktemp("tiny_llama"))

    def test_a_worker_keeps_its_model(self, folder):
        settings = Settings()
        models = worker_models(folder, settings)
        assert worker_models(folder, settings.changed(batch_rows=5)) is models
        assert worker_models(folder, settings.changed(dtype="float32")) is not models
        assert models.cache is not None
        assert worker_models(folder, settings.changed(cache=False)).cache is None

    def test_a_worker_lets_go_of_a_model_that_nobody_asks(self, folder):
        settings = Settings(cache=False)
        models = worker_models(folder, settings)
        models.used -= IDLE_SECONDS + 1
        other = settings.changed(dtype="float32")
        kept = worker_models(folder, other)
        with pytest.raises(LlmsqlError, match="is closed"):
            next(models.get(None).answer(None, None, None, None))
        assert worker_models(folder, other) is kept
        assert worker_models(folder, settings) is not models

    @pytest.mark.parametrize("engine", ["node", "process"])
    def test_same_answers_as_duckdb_and_shared_prefixes(self, spark, folder, engine):
        options = {"dtype": "float32", "max_output_tokens": 5, "device": "cpu", "cache": False}
        calls = ("llm('Say what', {title})", "llm_classify('Which?', {labels}, {title})")
        own = {} if engine == "node" else {"engine": engine}  # a node's engine is the default
        llmsql.spark.register(spark, model=folder, engine_linger=1, **own, **options)
        with connect(model=folder, **options) as con:
            con.execute("CREATE TABLE t (id INT, title TEXT, rating DOUBLE, kind TEXT)")
            con.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", ROWS)
            for call in calls:  # one after the other: the second finds the first one's worker, and its model
                said = answers(spark.sql(f"SELECT id, {call.format(**SPARK)} FROM t"))
                assert said == con.sql(f"SELECT id, {call.format(**DUCKDB)} FROM t ORDER BY id").fetchall()
                assert [row for row, text in said if text is None] == [3, 6]
        done = llmsql.spark.statistics(spark)
        assert [stage.asked for stage in done.stages] == [3, 3]
        assert 0 < done.computed_tokens < done.prompt_tokens

    def test_two_slots_share_one_engine(self, spark, folder):
        known = {file.name for file in Path(os.environ["LLMSQL_RUNTIME_DIR"]).glob("*.json")}
        llmsql.spark.register(spark, model=folder, engine_linger=1, max_batch_tokens=64, device="cpu", cache=False)
        frame = spark.range(0, 8, 1, 2).select("id", llm_filter("Is it?", "id"), F.spark_partition_id().alias("part"))
        found = frame.collect()  # two tasks at once, each in a worker of its own
        assert {row.part for row in found} == {0, 1}
        assert [row.id for row in found] == list(range(8))
        new = {file.name for file in Path(os.environ["LLMSQL_RUNTIME_DIR"]).glob("*.json")} - known
        assert len(new) == 1
        (state,) = [json.loads((Path(os.environ["LLMSQL_RUNTIME_DIR"]) / name).read_text()) for name in new]
        command = Path(f"/proc/{state['pid']}/cmdline").read_text()
        assert "llmsql.serving.engine_process" in command
        assert '"max_batch_tokens": 64' in command
        environment = Path(f"/proc/{state['pid']}/environ").read_text().split("\0")
        assert "OMP_NUM_THREADS=2" in environment, "the cores of both tasks"

    def test_a_task_takes_the_gpu_that_spark_gave_it(self, monkeypatch):
        gpu = SimpleNamespace(name="gpu", addresses=["3"])
        task = SimpleNamespace(resources=lambda: {"gpu": gpu})
        monkeypatch.setattr("llmsql.spark.worker_models.TaskContext.get", lambda: task)
        assert placed(Settings(engine="node")).device == "cuda:3"
        assert placed(Settings(engine="node", device="cuda:0")).device == "cuda:0"
        assert placed(Settings(engine="process")).device == "auto"
        assert placed(Settings(engine="node", engine_threads=5)).engine_threads == 5

    def test_an_engine_at_an_address(self, spark, monkeypatch):
        server = EngineServer(FakeModel(describe), name="fake", token="x", fingerprint=lambda: b"fake")
        monkeypatch.setenv("LLMSQL_TOKEN", "x")  # of the driver; workers do not have it
        try:
            llmsql.spark.register(spark, engine=f"grpc://127.0.0.1:{server.port}", cache=False)
            said = dict(answers(spark.sql("SELECT id, llm('Say', struct(title, rating)) FROM t")))
            assert said[2] == "Say|title='blue whale'"
            assert llmsql.spark.statistics(spark).model_calls == 4
            with pytest.raises(ModelError, match="there is no such folder"):
                llmsql.spark.register(spark, model="/no/such/model")
        finally:
            server.stop()


def with_batches_of(spark, rows):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows)


def tiny_llama(folder):
    """A folder with a random Llama of two layers and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            eos_token_id=fast.eos_token_id,
        )
    ).save_pretrained(folder)
    return str(folder)
