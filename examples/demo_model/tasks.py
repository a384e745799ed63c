"""Questions about generated rows: yes/no, one of several labels, copying a value; in many phrasings."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass

from llmsql.demo.grammar import Grammar, alternatives
from llmsql.demo.lexicon import COUNTRIES, WORDS, unknown_word
from llmsql.demo.products import CATEGORIES, GENRES, Product, make_product
from llmsql.demo.reviews import MOVIE_TOPICS, PRODUCT_TOPICS, SENTIMENTS, TOPICS, Review, make_review

Fields = list[tuple[str, object]]


@dataclass(frozen=True)
class Notes:
    """What the generator knows about an example, for the auxiliary losses of training; never shown to the model."""

    asked: str  #: one of ASKED
    evidence: str  #: name of the field that decides the answer
    text: str | None  #: name of the review's field
    description: str | None
    sentiment: str | None
    topics: tuple[str, ...]
    sentences: tuple[tuple[int, str | None, str | None], ...]  #: as in Review
    category: str
    suitable_for_children: bool


@dataclass(frozen=True)
class Example:
    """One row of the demo model's world: a question over fields, its choices if any, and the right answer."""

    task: str
    question: str
    choices: tuple[str, ...] | None
    fields: tuple[tuple[str, object], ...]
    answer: str
    notes: Notes | None = None

    @property
    def head(self) -> str:
        """The question and the choices, up to the fields."""
        choices = f"Answer with exactly one of: {', '.join(map(quoted, self.choices))}\n" if self.choices else ""
        return f"Question: {self.question}\n{choices}Data:\n{{\n"

    @property
    def content(self) -> str:
        """The user's message, in the frame that llmsql prompts with."""
        return self.head + "".join(cell(name, value) for name, value in self.fields) + "}"


TASKS = (
    "filter: positive",
    "filter: negative",
    "filter: mentions",
    "filter: children",
    "label: sentiment",
    "label: topic",
    "label: category",
    "copy: value",
)
#: What a question can ask for.
ASKED = (
    *("positive", "negative", "children", "adults", "sentiment", "topic", "category", "copy"),
    *(f"mentions {topic}" for topic in TOPICS),
)


def make_example(rng: random.Random, task: str, *, held_out: bool = False, length: float = 1.0) -> Example:
    """A random example of one of TASKS; its question is a held-out phrasing or one of the others, never both.

    `length` scales the number of sentences and of extra fields.
    """
    for _ in range(1000):
        example = _MAKERS[task](rng, task, length)
        if is_held_out(example.question) == held_out:
            return example
    raise ValueError(f"no phrasing of {task!r} with held_out={held_out} in 1,000 tries")


def is_held_out(question: str) -> bool:
    """Whether the question's letters fall into the tenth of all phrasings that training never sees."""
    letters = "".join(character for character in question.lower() if character.isalpha())
    return hashlib.blake2b(letters.encode(), digest_size=2).digest()[0] % 10 == 0


def quoted(value: object) -> str:
    """A JSON value as prompts write it: unicode kept, only quotes, backslashes and control characters escaped."""
    return json.dumps(value, ensure_ascii=False)


def cell(name: str, value: object) -> str:
    """One field of the prompt's data."""
    return f"{quoted(name)}: {quoted(value)},\n"


# --- fields -----------------------------------------------------------------------------------------------------------

_NAMES = {
    "text": alternatives("""text | review | text | review | text | review | text | body | comment | reviewcontent
review_text | reviewText | content | feedback | customer_review | opinion | reviews | comments
review_body | message | reviewBody | Text | Review | user_review | note | remarks | reviewcontent"""),
    "headline": alternatives("review_title | summary | headline | subject | review_headline | short_review"),
    "title": alternatives("""product_title | title | name | product | product_title | title | product_name | item
item_name | productTitle | Title"""),
    "film": alternatives("movie_title | title | name | movie | film | movie_name | film_title | title | Title"),
    "description": alternatives("""description | info | details | description | about | product_description | synopsis
product_info | Description | summary_text"""),
    "plot": alternatives("""info | movieinfo | plot | synopsis | description | movie_info | about | overview | storyline
info | description"""),
    "category": alternatives("category | genre | genres | type | department | main_category | product_category"),
    "brand": alternatives("""brand | maker | manufacturer | company | brand | productioncompany | studio | brand_name
vendor | seller"""),
    "price": alternatives("price | price | cost | list_price | unit_price | price_usd | Price | amount"),
    "country": alternatives("country | country | origin | country_of_origin | made_in | location | Country | nation"),
    "rating": alternatives("rating | stars | score | rating | overall | star_rating"),
}


def _new_name(rng: random.Random) -> str:
    words = [
        rng.choice(_COLUMN_WORDS) if rng.random() < 0.8 else unknown_word(rng) for _ in range(rng.choice((1, 1, 2)))
    ]
    return "_".join(words) if rng.random() < 0.9 else "".join(word.capitalize() for word in words)


_COLUMN_WORDS = alternatives("""id | key | code | number | user | customer | buyer | author | writer | critic | verified
date | time | year | month | day | size | format | color | weight | height | length | width | model
version | page | pages | language | city | state | region | street | zip | phone | email | url
link | image | photo | votes | helpful | likes | count | total | stock | status | flag | level
group | team | owner | source | target | batch | order | invoice | store | shop | shelf | aisle
director | actor | runtime | asin | parent | sku | barcode | label | tag | topic | class | series
edition | volume | issue | publisher | isbn | currency | discount | tax | material | fabric
season | episode | channel | device | browser | session | views | clicks | region | timezone
first | last | middle | nick | full | short | long | main | old | new | best | top | left | right""")


def _new_value(rng: random.Random) -> object:
    kind = rng.randrange(9)
    if kind == 0:
        return rng.randint(0, rng.choice((9, 99, 999, 99999)))
    if kind == 1:
        return rng.choice((True, False))
    if kind == 2:
        return f"{rng.randint(1995, 2024)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    if kind == 3:
        return "".join(rng.choice("ABCDEFGHKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.choice((4, 6, 8, 10))))
    if kind == 4:
        return f"{rng.choice(_FIRST)} {rng.choice(_LAST)}"
    if kind == 5:
        return round(rng.random() * rng.choice((1, 10, 100)), 2)
    if kind == 6:
        return rng.choice(_COLORS)
    words = [unknown_word(rng) if rng.random() < 0.5 else rng.choice(_PLAIN) for _ in range(rng.choice((1, 1, 2, 3)))]
    return " ".join(words) if kind == 7 else " ".join(word.capitalize() for word in words)


def _listed(name: str) -> list[str]:
    return alternatives(WORDS[name])


_FIRST, _LAST, _COLORS = _listed("name"), _listed("surname"), _listed("color")
_PLAIN = (
    _listed("noun")
    + _listed("place")
    + _listed("part")
    + _listed("good")
    + _listed("bad")
    + [w.lower() for w in COUNTRIES]
)


def _price(rng: random.Random, product: Product) -> object:
    return rng.choice(
        (product.price, product.price, f"${product.price:.2f}", f"{product.price:.2f}", int(product.price))
    )


def _category(rng: random.Random, product: Product) -> str:
    name = product.category
    return rng.choice(
        (name, name, name.title(), name.capitalize(), f"{name.title()} > {unknown_word(rng).capitalize()}")
    )


def _fields(
    rng: random.Random,
    product: Product,
    review: Review | None,
    needed: tuple[str, ...],
    *,
    never: tuple[str, ...] = (),
    extra: float = 1.0,
) -> dict[str, tuple[str, object]]:
    """Kind -> (name, value) for the needed kinds and a few others, names distinct; in random order."""
    film = product.kind == "movie"
    kinds = list(needed)
    optional = [
        "title",
        "title",
        "description",
        "description",
        "category",
        "brand",
        "price",
        "country",
        "other",
        "other",
        "other",
    ]
    if review is not None:
        optional += ["text", "text", "rating", "headline"]
    rng.shuffle(optional)
    for kind in optional[: int(rng.choice((0, 1, 1, 2, 2, 3, 4, 6)) * extra + 0.5)]:
        if kind not in kinds and kind not in never:
            kinds.append(kind)
        elif kind == "other":
            kinds.append(f"other{len(kinds)}")
    rng.shuffle(kinds)
    fields: dict[str, tuple[str, object]] = {}
    taken: set[str] = set()
    for kind in kinds:
        if kind.startswith("other"):
            name, value = _new_name(rng), _new_value(rng)
        else:
            names = _NAMES[{"title": "film", "description": "plot"}.get(kind, kind) if film else kind]
            name = rng.choice(names)
            value = {
                "text": lambda: review.text if review else "",
                "headline": lambda: review.headline if review else "",
                "title": lambda: product.title,
                "description": lambda: product.description,
                "category": lambda: _category(rng, product),
                "brand": lambda: product.brand,
                "price": lambda: _price(rng, product),
                "country": lambda: product.country,
                "rating": lambda: rng.choice((review.rating, float(review.rating))) if review else 0,
            }[kind]()
        if name.lower() not in taken:
            taken.add(name.lower())
            fields[kind] = (name, value)
        elif kind in needed:
            return _fields(rng, product, review, needed, never=never, extra=extra)
    return fields


def _product(rng: random.Random, length: float, kind: str | None = None) -> Product:
    return make_product(rng, kind=kind, sentences=max(2, int(rng.choice((2, 2, 3, 4, 5)) * length)))


def _review(rng: random.Random, product: Product, length: float, sentiment: str, topics: tuple[str, ...]) -> Review:
    sentences = max(1, int(rng.choice((1, 1, 1, 2, 2, 3, 4, 6)) * length))
    return make_review(rng, product, sentiment=sentiment, topics=topics, sentences=sentences)


# --- questions --------------------------------------------------------------------------------------------------------

_QUESTIONS = Grammar(
    {
        "positive": """Is {the} {review} {favorable}? | Is {the} {review} {favorable}? | Is it {favorable}?
Is this {favorable}? | Is this a {favorable} {review}? | Does the {customer} {like} {product}?
Does the {customer} {like} {product}? | Did the {customer} {like} {product}? | Is the {customer} {happy}?
Is the {customer} {happy} with {product}? | Was the {customer} {happy}?
Would the {customer} recommend {product}? | Does the {customer} recommend {product}?
Is the sentiment {favorable}? | Is the tone of the {review} {favorable}?
Is the {customer}'s opinion {favorable}? | Does the {review} sound {favorable}?
Does this sound {favorable}? | Does the {review} express a {favorable} opinion?
Does the {review} praise {product}? | {favorable}? | {favorable} {review}?
Is {the} {review} {favorable} about {product}? | Tell me whether the {review} is {favorable}.
Did the {customer} have a good experience? | Does the {customer} speak well of {product}?
Would the {customer} buy {product} again? | Is the feedback {favorable}?
Is the opinion of the {customer} {favorable}? | Are they {happy}? | Do they {like} {product}?
Did they {like} {product}? | Is the {customer} {happy} with the purchase?
The {review} is {favorable}, right?""",
        "negative": """Is {the} {review} {unfavorable}? | Is it {unfavorable}? | Is this {unfavorable}?
Is this an {unfavorable} {review}? | Does the {customer} {dislike} {product}?
Did the {customer} {dislike} {product}? | Is the {customer} {unhappy}?
Is the {customer} {unhappy} with {product}? | Was the {customer} {unhappy}? | Is the sentiment {unfavorable}?
Is the tone of the {review} {unfavorable}? | Does the {review} sound {unfavorable}?
Does the {review} express a {unfavorable} opinion? | {unfavorable}? | {unfavorable} {review}?
Is it a complaint? | Is this {review} a complaint? | Does the {customer} complain?
Does the {customer} complain about {product}? | Tell me whether the {review} is {unfavorable}.
Did the {customer} have a bad experience? | Is the feedback {unfavorable}? | Are they {unhappy}?
Did they {dislike} {product}? | Is the {customer} {unhappy} with the purchase?""",
        "mentions": """Does {the} {review} {mention} {aspect}? | Does {the} {review} {mention} {aspect}?
Does it {mention} {aspect}? | Is {aspect} mentioned? | Is {aspect} mentioned in the {review}?
Does the {customer} {mention} {aspect}? | Does the {customer} say anything about {aspect}?
Is the {review} about {aspect}? | Is it about {aspect}? | Does the {review} say something about {aspect}?
Does the {review} contain a remark on {aspect}? | Did the {customer} {mention} {aspect}? | Mentions {aspect}?
Any word on {aspect}? | Is there anything about {aspect} in the {review}? | Does this {mention} {aspect}?
Tell me whether the {review} mentions {aspect}.""",
        "children": """Is {this} {suitable} for {kids}? | Is {this} {suitable} for {kids}?
Is {this} {suitable} for {kids}? | Is it {suitable} for {kids}? | Is this {suitable} for {kids}?
Is it for {kids}? | Is {this} for {kids}? | Can {kids} {use} {this}? | Can {kids} {use} it?
May {kids} {use} {this}? | Is {this} kid friendly? | Is it child friendly? | Is {this} family friendly?
Would you give {this} to a child? | Would {this} be {suitable} for {kids}? | {suitable} for {kids}?
For {kids}? | Should {kids} {use} {this}? | Is {this} safe for {kids}? | Is {this} meant for {kids}?
Can I give {this} to {kids}? | Could {kids} {use} {this}?""",
        "adults": """Is {this} only for adults? | Is it for adults only? | Is {this} unsuitable for {kids}?
Is {this} for adults only? | Adults only? | Is it not suitable for {kids}?
Is {this} inappropriate for {kids}?""",
        "sentiment": """What is the sentiment? | What is the sentiment of {the} {review}?
Classify the sentiment. | Classify the sentiment of {the} {review}. | Sentiment | Sentiment of {the} {review}
sentiment | Sentiment? | How does the {customer} feel? | How does the {customer} feel about {product}?
What does the {customer} think of {product}? | Is {the} {review} {pairs}? | Is it {pairs}?
What is the tone of {the} {review}? | Tone | Tone of the {review} | Rate the sentiment of the {review}.
Which sentiment does the {review} express? | Label the {review}. | Classify {the} {review}.
Classify the {review} by sentiment. | What is the {customer}'s opinion? | The overall opinion
Opinion of the {customer} | What is the overall sentiment? | Determine the sentiment of the {review}.
Decide how the {customer} feels. | How satisfied is the {customer}? | What feeling does the {review} express?
attitude of the {customer}""",
        "topic": """What is {the} {review} about? | What is the {review} mainly about? | What is it about?
What is the topic? | What is the topic of {the} {review}? | Topic | Topic of {the} {review}
topic of {the} {review} | topic | Which topic does the {review} discuss?
What does the {customer} talk about? | Which aspect does the {review} talk about?
Which aspect is the {review} about? | Classify the topic. | Classify the {review} by topic.
What is the main topic of the {review}? | Main topic | main aspect | What does the {customer} write about?
Subject of the {review} | Which aspect does the {customer} mention? | What does the {review} mention?
Choose the topic of the {review}. | What is the main point of the {review}?
Which of these does the {review} mention? | aspect mentioned in the {review}""",
        "topic_positive": """What does the {customer} like? | What does the {customer} praise?
What is good about {product}? | Topic of the praise | What is the praise about?""",
        "topic_negative": """What does the {customer} complain about? | What is the complaint about?
Topic of the complaint | What is the main issue? | What is the problem? | What went wrong?
Reason for the complaint | main complaint | What is the {customer} unhappy about?""",
        "category": """What is the category? | Which category is {this} in? | Category of {this} | category
Category | What kind of product is {this}? | What kind of product is it? | Which category?
Which department sells {this}? | What type of product is it? | Classify the product. | Classify {this}.
Product category | Category of the product | What is the product category?
Which category does {this} belong to? | Assign a category. | Pick the right category for {this}.
What sort of product is this? | kind of product | Choose the category of {this}.""",
        "genre": """What is the genre? | Which genre is the movie? | Genre | genre | Genre of the movie
What kind of movie is it? | What genre is this? | Classify the movie by genre.
Which genre does the film belong to? | What type of film is this? | movie genre | Classify the genre.
Choose the genre.""",
        "copy": """What is the {name}? | What is the {name}? | What's the {name}? | Return the {name}.
Return the {name} | Copy the {name}. | Give me the {name}. | Give the {name} | Extract the {name}.
Extract the {name} | Tell me the {name}. | {name} | {name}? | {Name} | Which {name}? | Which {name} is it?
Which {name} is given? | Write the {name}. | Repeat the {name}. | Find the {name}. | What {name} is given?
Print the {name} | Output the {name}. | Look up the {name}. | Show the {name}. | Name the {name}.
State the {name}. | Please copy the {name}. | What does the data say for the {name}? | the {name}""",
        "copy_column": """What is the value of {name}? | Return the value of {name}.
Return the field {name}. | Copy the value of {name}. | Copy the field {name}. | What is in the field {name}?
{name} | The value of {name} | What is {name}? | Repeat the value of {name}. | Give me the value of {name}.
Print {name}. | Read the field {name}. | What is the {name}? | Return the {name}. | Extract {name}.
Output the value of {name} | Show {name}.""",
        "copy_title": """What is {this} called? | What is the name of {this}? | Which {item} is it?
Which {item} is this about? | Name of {this} | What is the title of {this}? | Title of {this}
Return the title of {this}""",
        "copy_country": """Which country is it from? | Where is it from? | Where does it come from?
Where is {this} from? | Which country is {this} from? | In which country is it made? | Where was it made?
What country does {this} come from?""",
        "copy_price": """How much is it? | How much does it cost? | What does it cost? | How much is {this}?
What does {this} cost? | How much does {this} cost? | What is the price of {this}?""",
        "copy_brand": """Who makes it? | Who makes {this}? | Who made {this}? | Which company makes it?
What brand is it? | Which brand is it? | What brand is {this}?""",
        "the": "the | this | the | this | the customer",
        "review": """review | review | review | comment | feedback | opinion | text | customer review
product review | user review""",
        "customer": "customer | reviewer | buyer | user | author | writer | customer | reviewer | person | client",
        "product": """it | it | the product | this product | the item | this item | the movie | the film
this | what they bought | the purchase""",
        "this": """this | it | the product | this product | the item | this item | the movie | this movie
the film | this film | this one""",
        "item": "product | item | movie | film",
        "like": "like | love | enjoy | like | approve of",
        "dislike": "dislike | hate | not like | regret buying",
        "favorable": "positive | positive | positive | favorable | good",
        "unfavorable": "negative | negative | negative | unfavorable | bad | critical",
        "pairs": "positive or negative | negative or positive | good or bad | positive, negative or neutral",
        "happy": "happy | satisfied | pleased | content | glad",
        "unhappy": "unhappy | dissatisfied | disappointed | angry | upset | not satisfied",
        "mention": "mention | talk about | refer to | discuss | speak about | mention | mention | comment on",
        "suitable": "suitable | suitable | suitable | appropriate | okay | good | fit | fine | ok | right",
        "kids": """kids | children | kids | children | a child | young children | families | small children
a kid | minors | a young audience | toddlers""",
        "use": "use | have | enjoy | watch | see | buy",
        "aspect": "it",
        "name": "it",
    }
)

_ASPECT_NAMES = {
    "delivery": """delivery | delivery | delivery | shipping | the delivery | the shipping | shipping time
delivery time | how it was delivered""",
    "quality": "quality | the quality | build quality | the workmanship | the material",
    "price": "price | the price | the cost | cost | how much it costs",
    "service": "customer service | service | the service | the seller | support | customer support",
    "packaging": "packaging | the packaging | the box | wrapping | how it was packed",
    "size": "size | the size | fit | the fit",
    "story": "the story | the plot | plot | story",
    "acting": "the acting | acting | the actors | the cast",
}
_LABEL_NAMES = {
    "delivery": "delivery | delivery | delivery | shipping | late delivery and shipping",
    "quality": "quality | quality | product quality | build quality",
    "price": "price | price | cost | value",
    "service": "service | customer service | support | service",
    "packaging": "packaging | packaging | box and packaging",
    "size": "size | size | fit | size and fit",
    "story": "story | plot | story",
    "acting": "acting | acting | cast",
}


def _ask(rng: random.Random, rule: str, **given: str) -> str:
    text = _QUESTIONS.expand(rng, rule, given)
    style = rng.random()
    if style < 0.12:
        text = text.rstrip("?.")
    elif style < 0.17:
        text = text + rng.choice((" Answer Yes or No.", " Answer yes or no.")) if rule in _YES_NO else text
    elif style < 0.2:
        text = rng.choice(("Please answer: ", "Yes or no: ")) + text if rule in _YES_NO else "Please answer: " + text
    if rng.random() < 0.85:
        return text[:1].upper() + text[1:]
    return text.lower() if rule[:4] != "copy" and rng.random() < 0.5 else text


_YES_NO = ("positive", "negative", "mentions", "children", "adults")
_YES = ("Yes", "No")


def _shown(rng: random.Random, fields: dict[str, tuple[str, object]]) -> tuple[tuple[str, object], ...]:
    shown = list(fields.values())
    rng.shuffle(shown)
    return tuple(shown)


def _notes(
    asked: str, evidence: str, fields: dict[str, tuple[str, object]], product: Product, review: Review | None
) -> Notes:
    def name(kind: str) -> str | None:
        return fields[kind][0] if kind in fields else None

    return Notes(
        asked=asked,
        evidence=name(evidence) or name("title") or "",
        text=name("text"),
        description=name("description"),
        sentiment=review.sentiment if review else None,
        topics=review.topics if review else (),
        sentences=review.sentences if review else (),
        category=product.category,
        suitable_for_children=product.suitable_for_children,
    )


def _opinion_row(
    rng: random.Random, length: float, sentiment: str, topics: tuple[str, ...] | None = None
) -> tuple[Product, Review]:
    product = _product(rng, length)
    if topics is None:
        available = MOVIE_TOPICS if product.kind == "movie" else PRODUCT_TOPICS
        topics = tuple(rng.sample(available, rng.choice((0, 0, 0, 0, 1, 1, 2))))
    return product, _review(rng, product, length, sentiment, topics)


def _opinion_fields(
    rng: random.Random, product: Product, review: Review, length: float
) -> dict[str, tuple[str, object]]:
    never = tuple(kind for kind, keep in (("rating", 0.5), ("headline", 0.6)) if rng.random() > keep)
    fields = _fields(rng, product, review, ("text",), never=never, extra=length)
    if rng.random() < 0.04:
        fields["text"] = (_new_name(rng) + "_", fields["text"][1])
    return fields


def _positive(rng: random.Random, task: str, length: float) -> Example:
    asked = task.split(": ")[1]
    sentiment = rng.choice(SENTIMENTS[:2])
    product, review = _opinion_row(rng, length, sentiment)
    question = _ask(rng, asked)
    fields = _opinion_fields(rng, product, review, length)
    notes = _notes(asked, "text", fields, product, review)
    return Example(task, question, _YES, _shown(rng, fields), _YES[sentiment != asked], notes)


def _mentions(rng: random.Random, task: str, length: float) -> Example:
    product = _product(rng, length)
    available = MOVIE_TOPICS if product.kind == "movie" else PRODUCT_TOPICS
    asked = "delivery" if rng.random() < 0.5 else rng.choice(available)
    others = [topic for topic in available if topic != asked]
    topics = rng.sample(others, rng.choice((0, 1, 1, 2)))
    yes = rng.random() < 0.5
    if yes:
        topics.insert(rng.randrange(len(topics) + 1), asked)
    review = _review(rng, product, length, rng.choice(SENTIMENTS), tuple(topics))
    if (
        not yes
        and asked == "price"
        and re.search(r"money|worth|penny|cheap|\$|buck|dollar|refund", review.text, re.IGNORECASE)
    ):
        return _mentions(rng, task, length)
    question = _ask(rng, "mentions", aspect=rng.choice(alternatives(_ASPECT_NAMES[asked])))
    fields = _opinion_fields(rng, product, review, length)
    notes = _notes(f"mentions {asked}", "text", fields, product, review)
    return Example(task, question, _YES, _shown(rng, fields), _YES[not yes], notes)


def _children(rng: random.Random, task: str, length: float) -> Example:
    product = _product(rng, length)
    review = _review(rng, product, length, rng.choice(SENTIMENTS[:2]), ()) if rng.random() < 0.6 else None
    fields = _fields(rng, product, review, ("description",), extra=length)
    inverted = rng.random() < 0.12
    asked = "adults" if inverted else "children"
    notes = _notes(asked, "description", fields, product, review)
    answer = _YES[product.suitable_for_children == inverted]
    return Example(task, _ask(rng, asked), _YES, _shown(rng, fields), answer, notes)


def _written(rng: random.Random, labels: list[str]) -> tuple[str, ...]:
    style = rng.random()
    if style < 0.15:
        return tuple(label.upper() for label in labels)
    if style < 0.4:
        return tuple(label.title() for label in labels)
    return tuple(labels)


def _choose(
    rng: random.Random,
    task: str,
    question: str,
    labels: list[str],
    right: str,
    fields: dict[str, tuple[str, object]],
    notes: Notes,
) -> Example:
    shuffled = labels[:]
    rng.shuffle(shuffled)
    place = shuffled.index(right)
    choices = _written(rng, shuffled)
    return Example(task, question, choices, _shown(rng, fields), choices[place], notes)


_SENTIMENT_LABELS = [("positive", "negative", "neutral")] * 6 + [
    ("good", "bad", "neutral"),
    ("happy", "unhappy", "neutral"),
    ("satisfied", "dissatisfied", "neutral"),
    ("favorable", "unfavorable", "mixed"),
    ("happy", "angry", "indifferent"),
    ("positive", "negative", "mixed"),
]


def _sentiment(rng: random.Random, task: str, length: float) -> Example:
    sentiment = rng.choice((*SENTIMENTS, "positive", "negative"))
    product, review = _opinion_row(rng, length, sentiment)
    names = rng.choice(_SENTIMENT_LABELS)
    labels = list(names) if sentiment == "neutral" or rng.random() < 0.45 else list(names[:2])
    right = names[SENTIMENTS.index(sentiment)]
    fields = _opinion_fields(rng, product, review, length)
    notes = _notes("sentiment", "text", fields, product, review)
    return _choose(rng, task, _ask(rng, "sentiment"), labels, right, fields, notes)


def _topic(rng: random.Random, task: str, length: float) -> Example:
    product = _product(rng, length)
    available = list(MOVIE_TOPICS if product.kind == "movie" else PRODUCT_TOPICS)
    topic = rng.choice(available)
    sentiment = rng.choice(SENTIMENTS)
    review = _review(rng, product, length, sentiment, (topic,))
    if rng.random() < 0.4:
        available = list(TOPICS)
    count = min(len(available) - 1, rng.choice((1, 2, 3, 3, 4, 5, 7)))
    others = rng.sample([name for name in available if name != topic], count)
    names = {name: rng.choice(alternatives(_LABEL_NAMES[name])) for name in (topic, *others)}
    question = _ask(rng, rng.choice(("topic", "topic", f"topic_{sentiment}")) if sentiment != "neutral" else "topic")
    fields = _opinion_fields(rng, product, review, length)
    notes = _notes("topic", "text", fields, product, review)
    return _choose(rng, task, question, list(names.values()), names[topic], fields, notes)


def _category_choice(rng: random.Random, task: str, length: float) -> Example:
    product = _product(rng, length, "movie" if rng.random() < 0.35 else "product")
    review = _review(rng, product, length, rng.choice(SENTIMENTS[:2]), ()) if rng.random() < 0.4 else None
    fields = _fields(rng, product, review, ("description", "title"), never=("category",), extra=length)
    if product.kind == "product" and rng.random() < 0.3:
        fields.pop("description")
    names = list(GENRES if product.kind == "movie" else CATEGORIES)
    others = rng.sample([name for name in names if name != product.category], rng.choice((1, 2, 3, 4, 5)))
    question = _ask(rng, "genre" if product.kind == "movie" else "category")
    notes = _notes("category", "description", fields, product, review)
    return _choose(rng, task, question, [product.category, *others], product.category, fields, notes)


_COPIED = {
    "title": ("title", "title", "name", "product title", "product name", "full title"),
    "film": ("title", "title", "name", "movie title", "film title", "name of the movie"),
    "brand": ("brand", "brand", "maker", "manufacturer", "company", "brand name"),
    "price": ("price", "price", "cost", "price of the product"),
    "country": ("country", "country", "origin", "country of origin", "location"),
}


def _copy(rng: random.Random, task: str, length: float) -> Example:
    product = _product(rng, length)
    review = _review(rng, product, length, rng.choice(SENTIMENTS[:2]), ()) if rng.random() < 0.5 else None
    wanted = rng.choice(("title", "title", "brand", "price", "country", "other", "other", "other"))
    never = ("headline", "rating") if wanted == "title" else ()
    if rng.random() < 0.4:
        never = (*never, "description", "text")
    fields = _fields(rng, product, review, (wanted,), never=never, extra=length)
    name, value = fields[wanted]
    if wanted == "other" or rng.random() < 0.3:
        column = name if rng.random() < 0.6 else name.replace("_", " ")
        question = _ask(rng, "copy_column", name=rng.choice((column, column, column, quoted(column))))
    elif rng.random() < 0.3:
        question = _ask(rng, f"copy_{wanted}")
    else:
        kind = "film" if wanted == "title" and product.kind == "movie" else wanted
        question = _ask(rng, "copy", name=rng.choice(_COPIED[kind]))
    answer = value if isinstance(value, str) else json.dumps(value)
    return Example(task, question, None, _shown(rng, fields), answer, _notes("copy", wanted, fields, product, review))


_MAKERS = {
    "filter: positive": _positive,
    "filter: negative": _positive,
    "filter: mentions": _mentions,
    "filter: children": _children,
    "label: sentiment": _sentiment,
    "label: topic": _topic,
    "label: category": _category_choice,
    "copy: value": _copy,
}
