"""The LLM functions in Spark: `register` for Spark SQL, and functions that return Columns for DataFrames.

    import llmsql.spark
    from llmsql.spark import llm_classify
    spark = llmsql.spark.register(spark, model="demo")
    spark.sql("SELECT llm_filter('Is it positive?', struct(title, review)) FROM reviews")
    reviews.withColumn("topic", llm_classify("Topic of {review}?", ["price", "delivery"]))

Needs pyspark (`pip install 'llmsql[spark]'`) and Java.
"""

from __future__ import annotations

from llmsql.spark.requirements import check_java, check_pyspark

check_pyspark()  # before the imports that need it, so that what is missing is said in one line

from llmsql.spark.columns import llm, llm_agg, llm_classify, llm_extract, llm_filter, llm_score  # noqa: E402
from llmsql.spark.frames import where_llm, with_llm  # noqa: E402
from llmsql.spark.session import PlanningSession, register, statistics  # noqa: E402

__all__ = [
    "PlanningSession",
    "check_java",
    "llm",
    "llm_agg",
    "llm_classify",
    "llm_extract",
    "llm_filter",
    "llm_score",
    "register",
    "statistics",
    "where_llm",
    "with_llm",
]
