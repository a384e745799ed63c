"""LLM functions in Spark over a file of reviews: planned SQL, a planned DataFrame, and what they cost.

python examples/spark_reviews.py                                    generated reviews, the demo model, two cores
python examples/spark_reviews.py reviews.parquet --model /models/qwen
spark-submit --master spark://host:7077 examples/spark_reviews.py s3a://bucket/reviews.parquet --model /models/qwen

A file needs the columns product_title and review: Parquet, or CSV with a header.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

import llmsql.spark
from llmsql.demo.reviews import reviews_table
from llmsql.spark import llm_classify, with_llm

TOPICS = ["delivery", "quality", "price", "service", "packaging", "size", "story", "acting"]


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("file", nargs="?", help="Parquet or CSV; without it reviews are generated")
    options.add_argument("--rows", type=int, default=400, help="how many to generate, or to read at most")
    options.add_argument("--model", default="demo", help="a model folder, a hub id, or 'demo'")
    options.add_argument("--master", help="where to run, if spark-submit does not say so; else local[2]")
    given = options.parse_args(arguments)

    builder = SparkSession.builder.appName("reviews")
    if given.master or not _is_submitted():
        builder = builder.master(given.master or "local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.sql.shuffle.partitions", "4")  # Spark's 200 are for large clusters
    spark = llmsql.spark.register(builder.getOrCreate(), model=given.model)
    with tempfile.TemporaryDirectory() as folder:
        read_reviews(spark, given.file or generated(Path(folder), given.rows), given.rows).createOrReplaceTempView(
            "reviews"
        )
        # Two filters, the cheap one first; each distinct pair of title and review is asked once.
        spark.sql(
            """SELECT product_title, count(*) AS complaints FROM reviews
            WHERE length(review) > 20 AND NOT llm_filter('Is the review positive?', product_title, review)
            GROUP BY product_title ORDER BY complaints DESC, product_title LIMIT 5"""
        ).show(truncate=60)
        print(spark.last_query.report())

        few = spark.table("reviews").orderBy("product_title", "review").limit(given.rows // 4)
        about = with_llm(few, "about", llm_classify("What is the review about?", TOPICS, "product_title", "review"))
        about.groupBy("about").count().orderBy("about").show()
        about.select("review", "about").show(5, truncate=60)  # a second action: nothing is asked again
        print(spark.last_query.report())
    spark.stop()


def generated(folder: Path, rows: int) -> str:
    """The path of a Parquet file with generated reviews."""
    pq.write_table(reviews_table(rows, seed=7), folder / "reviews.parquet")
    return str(folder / "reviews.parquet")


def read_reviews(spark: SparkSession, path: str, rows: int) -> DataFrame:
    """At most so many reviews of a file."""
    frame = spark.read.csv(path, header=True) if path.endswith(".csv") else spark.read.parquet(path)
    return frame.select("product_title", "review").limit(rows)


def _is_submitted() -> bool:
    from pyspark import SparkConf

    return SparkConf().contains("spark.master")


if __name__ == "__main__":
    main()
