"""SELECT llm(...) in DuckDB and Spark, answered by an embedded paged-KV engine."""
