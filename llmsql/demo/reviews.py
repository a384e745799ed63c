"""Generated reviews of generated products: the demo's table, and the text that the demo model learns from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from .grammar import Grammar, Rule
from .lexicon import ASPECTS, CONTEXT, GENERAL, WORDS, unknown_word
from .products import Product, make_product, with_articles

SENTIMENTS = ("positive", "negative", "neutral")
#: Aspects that a review may speak about; the last two only of movies.
TOPICS = ("delivery", "quality", "price", "service", "packaging", "size", "story", "acting")
MOVIE_TOPICS = ("delivery", "price", "service", "packaging", "story", "acting")
PRODUCT_TOPICS = TOPICS[:6]


@dataclass(frozen=True)
class Review:
    """One generated review with its truths."""

    text: str
    headline: str
    rating: int  #: 1 to 5 stars
    sentiment: str  #: one of SENTIMENTS
    topics: tuple[str, ...]  #: the aspects spoken about, the main one first; empty for a purely general review
    sentences: tuple[tuple[int, str | None, str | None], ...]  #: each one's end in the text, its sentiment, its aspect


def reviews_table(rows: int, seed: int = 0) -> pa.Table:
    """Reviews joined with their products, [rows] in random order, with realistic repetition of both.

    Columns to prompt with: `review_id, product_title, category, brand, price, country, description, review, rating,
    verified`. Columns to compare answers with, never to prompt with: `is_positive, mentions_delivery, topic,
    suitable_for_children`. Every review has one topic and a clear opinion. The same arguments give the same table.
    """
    rng = random.Random(f"reviews {seed}")
    products = [make_product(rng) for _ in range(max(1, min(400, rows // 16)))]
    popularity = [1.0 / (rank + 3) for rank in range(len(products))]
    kinds = {
        (topic, sentiment): [
            make_review(rng, None, sentiment=sentiment, topics=(topic,), sentences=1) for _ in range(6)
        ]
        for topic in TOPICS
        for sentiment in SENTIMENTS[:2]
    }
    columns: dict[str, list[object]] = {name: [] for name in _COLUMNS.names}
    for row, product in enumerate(rng.choices(products, popularity, k=rows)):
        topic = rng.choice(MOVIE_TOPICS if product.kind == "movie" else PRODUCT_TOPICS)
        sentiment = "positive" if rng.random() < 0.6 else "negative"
        if rng.random() < 0.2:  # people repeat themselves: a stock of short reviews
            review = rng.choice(kinds[topic, sentiment])
        else:
            review = make_review(rng, product, sentiment=sentiment, topics=(topic,))
        values = (f"R{row:06d}", product.title, product.category, product.brand, product.price, product.country)
        values += (product.description, review.text, review.rating, rng.random() < 0.8)  # type: ignore[assignment]
        values += (sentiment == "positive", topic == "delivery", topic, product.suitable_for_children)  # type: ignore[assignment]
        for name, value in zip(columns, values):
            columns[name].append(value)
    return pa.table(columns, schema=_COLUMNS)


def make_review(
    rng: random.Random,
    product: Product | None,
    *,
    sentiment: str,
    topics: tuple[str, ...] = (),
    sentences: int | None = None,
) -> Review:
    """A random review of one sentiment; topics after the first may be mentioned in passing, without opinion."""
    noun = "movie" if product is not None and product.kind == "movie" else "product"
    given = {"noun": rng.choice((noun, "film" if noun == "movie" else "item"))} if rng.random() < 0.3 else None
    count = sentences if sentences is not None else rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 7))
    body: list[tuple[str, str | None, str | None]] = []
    for place, topic in enumerate(topics):
        opinion = sentiment if place == 0 else rng.choice((sentiment, "neutral"))
        body.append((_ASPECTS[topic].expand(rng, opinion), opinion, topic))
    if not topics or (sentiment == "neutral" and len(body) < count):
        body.append((_GENERAL.expand(rng, sentiment, given), sentiment, None))
    while len(body) < count:
        if rng.random() < 0.45:
            body.append((_GENERAL.expand(rng, "context", given), None, None))
        elif topics and rng.random() < 0.4:
            body.append((_ASPECTS[topics[0]].expand(rng, sentiment), sentiment, topics[0]))
        else:
            body.append((_GENERAL.expand(rng, sentiment, given), sentiment, None))
    rng.shuffle(body)
    ratings = {"positive": (4, 5, 5, 5), "negative": (1, 1, 2), "neutral": (3,)}
    headline = _GENERAL.expand(rng, rng.choice((sentiment, "stars_" + sentiment, "context")))
    typed = _as_typed(rng, [text for text, _, _ in body])
    ends = list(accumulate(map(len, typed)))[::2]
    return Review(
        text="".join(typed),
        headline="".join(_as_typed(rng, [headline])).rstrip("."),
        rating=rng.choice(ratings[sentiment]),
        sentiment=sentiment,
        topics=topics,
        sentences=tuple((end, opinion, topic) for end, (_, opinion, topic) in zip(ends, body)),
    )


def _as_typed(rng: random.Random, sentences: list[str]) -> list[str]:
    """Sentences and what stands between them, as hasty people type: shouting, no capitals, no full stops."""
    style = rng.random()
    if style < 0.08:
        sentences = [sentence.rstrip(".!") + "!" * rng.choice((1, 1, 2, 3)) for sentence in sentences]
    sentences = [with_articles(sentence[:1].upper() + sentence[1:]) for sentence in sentences]
    between = None
    if 0.08 < style < 0.12:
        sentences = [sentence.upper() for sentence in sentences]
    elif 0.12 < style < 0.25:
        sentences = [sentence.lower() for sentence in sentences]
    elif 0.25 < style < 0.3:
        between = rng.choice((", ", " ", "... ", "  ", " - ", " and "))
    if rng.random() < 0.15:
        sentences[-1] = sentences[-1].rstrip(".")
    if rng.random() < 0.1:
        quote = rng.choice(("", "’"))
        sentences = [sentence.replace("'", quote) for sentence in sentences]
    typed = []
    for place, sentence in enumerate(sentences):
        if between and place + 1 < len(sentences) and sentence.endswith("."):
            typed += [sentence[:-1], between]
        else:
            typed += [sentence, " "]
    return typed[:-1]


_NAMED: dict[str, Rule] = {**WORDS, "unknown": unknown_word}
_STARS = {
    "stars_positive": "Five Stars | Four Stars | 5 stars | 4 stars",
    "stars_negative": "One Star | Two Stars | 1 star | 2 stars",
    "stars_neutral": "Three Stars | 3 stars",
}
_GENERAL = Grammar(_NAMED, GENERAL, CONTEXT, _STARS)
_ASPECTS = {topic: Grammar(_NAMED, dict(rules)) for topic, rules in ASPECTS.items()}
_COLUMNS = pa.schema(
    [
        ("review_id", pa.string()),
        ("product_title", pa.string()),
        ("category", pa.string()),
        ("brand", pa.string()),
        ("price", pa.float64()),
        ("country", pa.string()),
        ("description", pa.string()),
        ("review", pa.string()),
        ("rating", pa.int64()),
        ("verified", pa.bool_()),
        ("is_positive", pa.bool_()),
        ("mentions_delivery", pa.bool_()),
        ("topic", pa.string()),
        ("suitable_for_children", pa.bool_()),
    ]
)
