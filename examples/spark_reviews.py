"""The LLM functions in Spark SQL and on DataFrames: generated reviews, the demo model, two cores of this machine.

python examples/spark_reviews.py [rows]
"""

from __future__ import annotations

import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import llmsql.spark
from llmsql.demo.reviews import reviews_table
from llmsql.spark import llm_classify

TOPICS = ["delivery", "quality", "price", "service", "packaging", "size", "story", "acting"]


def main(rows: int = 400) -> None:
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    llmsql.spark.register(spark, model="demo")
    spark.createDataFrame(reviews_table(rows, seed=7)).repartition(2).createOrReplaceTempView("reviews")

    # Cached, because Spark would ask the model again for each of the two queries below.
    spark.sql(
        """SELECT *, llm_filter('Is the review positive?', struct(product_title, description, review)) AS positive
        FROM reviews"""
    ).cache().createOrReplaceTempView("judged")
    spark.sql(
        """SELECT category, count(*) AS reviews, avg(positive::INT) AS positive, avg(rating) AS rating
        FROM judged GROUP BY category ORDER BY reviews DESC"""
    ).show(truncate=False)
    spark.sql("SELECT avg((positive = is_positive)::INT) AS right FROM judged").show()

    reviews = spark.table("reviews").limit(rows // 4).coalesce(1)
    about = reviews.withColumn("about", llm_classify("What is the review about?", TOPICS, "product_title", "review"))
    about.cache()
    about.select(F.substring("review", 1, 60).alias("review"), "about", "topic").show(8, truncate=False)

    print(llmsql.spark.statistics(spark).report())
    spark.stop()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
