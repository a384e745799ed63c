"""Generated products and movies: what is sold, and the description that goes with it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .grammar import Grammar, alternatives
from .lexicon import COUNTRIES, WORDS, unknown_word


@dataclass(frozen=True)
class Product:
    """One product or movie of the catalogue, with the truths that questions about it are checked against."""

    title: str
    kind: str  #: "product" or "movie"
    category: str  #: a key of `CATEGORIES` or `GENRES`
    brand: str
    price: float
    country: str
    description: str
    suitable_for_children: bool


def make_product(rng: random.Random, *, kind: str | None = None, sentences: int | None = None) -> Product:
    """A random product or movie; `sentences` is the length of its description, 4 to 8 when not given."""
    kind = kind or ("movie" if rng.random() < 0.3 else "product")
    suitable = rng.random() < 0.5
    catalogue = GENRES if kind == "movie" else CATEGORIES
    for_children = FAMILY_ONLY if suitable else ADULT_ONLY
    category = rng.choice([name for name in catalogue if name not in for_children["not"]])
    nouns, features = catalogue[category]
    noun = rng.choice(alternatives(nouns))
    brand = _brand(rng)
    title = _MOVIE_TITLES.expand(rng, "title") if kind == "movie" else _title(rng, brand, noun)
    given = {
        "title": title,
        "brand": brand,
        "item": noun,
        "kin": f"{category} {noun}" if kind == "movie" else noun,
    }
    spare = alternatives(features)
    rng.shuffle(spare)
    given["feature"] = spare.pop()
    body = [_DESCRIPTIONS.expand(rng, f"{kind}_intro", given)]
    body.append(_DESCRIPTIONS.expand(rng, f"{kind}_{'family' if suitable else 'adult'}", given))
    count = sentences if sentences is not None else rng.randint(4, 8)
    for _ in range(count - 2):
        rule = rng.choice((f"{kind}_feature", f"{kind}_feature", "marketing", "details"))
        if spare and rule.endswith("feature"):
            given["feature"] = spare.pop()
        elif rule.endswith("feature"):
            rule = "marketing"
        body.append(_DESCRIPTIONS.expand(rng, rule, given))
    rest = body[1:]
    rng.shuffle(rest)
    price = rng.choice((rng.randint(1, 30), rng.randint(5, 300))) - rng.choice(
        (0.01, 0.01, 0.05, 0.5, 0.0, rng.random())
    )
    return Product(
        title=title,
        kind=kind,
        category=category,
        brand=brand,
        price=max(0.49, round(price, 2)),
        country=rng.choice(COUNTRIES),
        description=with_articles(" ".join([body[0], *rest])),
        suitable_for_children=suitable,
    )


def with_articles(text: str) -> str:
    """The text with `a` before a vowel made `an`."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


def _brand(rng: random.Random) -> str:
    word = unknown_word(rng).capitalize()
    second = rng.choice(
        ("", "", "", " & Sons", " Home", " Studio", " Works", " Co", " Brothers", " International", " Press", " Labs")
    )
    return rng.choice(
        (word, word + second, f"{rng.choice(_SURNAMES)}{second}", f"{word} {unknown_word(rng).capitalize()}")
    )


def _title(rng: random.Random, brand: str, noun: str) -> str:
    head = rng.choice(("", brand, unknown_word(rng).capitalize(), rng.choice(_TITLE_WORDS)))
    middle = rng.choice(("", "", rng.choice(_TITLE_WORDS), rng.choice(_COLORS), unknown_word(rng).capitalize()))
    tail = rng.choice(("", "", "", rng.choice(_TITLE_TAILS), str(rng.randint(2, 990))))
    return " ".join(part for part in (head, middle, noun.title(), tail) if part)


#: category -> (nouns, features of the description)
CATEGORIES = {
    "electronics": (
        """headphones | wireless speaker | phone charger | laptop stand | usb cable | keyboard | webcam
tablet | power bank | monitor | radio | smart watch""",
        """connects over bluetooth | charges in one hour | works with every phone | has a long battery life
supports usb and hdmi | has a bright display""",
    ),
    "toys": (
        """building blocks | puzzle | doll | toy train | stuffed bear | board game | toy car | kite
play set | puppet | spinning top | action figure""",
        """comes with many colorful pieces | encourages imaginative play | makes playtime more fun
has rounded edges and bright colors | teaches shapes and colors""",
    ),
    "books": (
        """novel | cookbook | picture book | guide | story collection | atlas | biography | paperback
handbook | dictionary""",
        """has many illustrated pages | tells the story chapter by chapter
was written by a well known author | is now in its third edition | comes in hardcover""",
    ),
    "kitchen": (
        """frying pan | coffee maker | knife set | mixing bowl | blender | toaster | cutting board
tea kettle | baking tray | measuring cups | whisk""",
        """is dishwasher safe | heats evenly on every stove | makes cooking easier | has a non stick coating
brews up to ten cups | helps with baking and cooking""",
    ),
    "clothing": (
        """jacket | t-shirt | pair of socks | winter coat | dress | pair of jeans | scarf | hat | sweater
pair of gloves | raincoat""",
        """is made of soft cotton | comes in five sizes | is machine washable | has two pockets
keeps you warm on cold days | has long sleeves and a hood""",
    ),
    "sports": (
        """yoga mat | tennis racket | basketball | bicycle helmet | dumbbell | jump rope | sleeping bag
soccer ball | fishing rod | tent""",
        """is made for training outdoors | helps you stay fit | has a firm grip during exercise
is used by many athletes | folds up for camping and hiking""",
    ),
    "beauty": (
        """shampoo | face cream | lipstick | perfume | hair dryer | nail polish | body lotion | makeup brush
soap | razor""",
        """cares for dry skin | smells of roses and vanilla | is gentle on hair and skin
contains natural oils | lasts all day on your skin""",
    ),
    "garden": (
        """garden hose | flower pot | lawn mower | seed mix | watering can | rake | bird feeder
pruning shears | greenhouse | shovel""",
        """keeps your plants healthy | is made for the lawn and flower beds | waters the whole garden
grows well in sun and shade | resists rain and frost""",
    ),
    "grocery": (
        """green tea | coffee beans | chocolate box | olive oil | pasta | red wine | honey | whisky | cereal
spice mix | craft beer | cookies""",
        """is made from organic ingredients | has a rich flavor | comes from small farms
is best enjoyed chilled | pairs well with cheese and bread""",
    ),
    "music": (
        """acoustic guitar | violin | drum set | ukulele | keyboard stand | flute | jazz album
vinyl record | microphone | piano songbook""",
        """has a warm sound | stays in tune | is made for musicians | comes with strings and a strap
was recorded live on stage | has twelve songs""",
    ),
    "office": (
        """notebook | stapler | desk lamp | ink cartridge | filing cabinet | fountain pen | calendar
desk chair | envelope set | printer paper""",
        """keeps your desk tidy | is made for work at the office | prints crisp pages | has lined paper
holds all your documents""",
    ),
    "pets": (
        """dog leash | cat tree | dog food | cat litter | fish tank | bird cage | chew bone | pet bed
hamster wheel | dog collar""",
        """keeps your dog or cat happy | is loved by pets of all sizes | is chew proof
is recommended by vets | makes walks with your dog safer""",
    ),
}

#: genre -> (kinds of film, plot sentences without subject)
GENRES = {
    "comedy": (
        "movie | film",
        """leads to one funny mix-up after the other | makes fun of office life
turns a wedding into chaos and laughter""",
    ),
    "horror": (
        "movie | film",
        "wakes an evil spirit in the cellar | haunts a lonely house | follows a killer through a dark forest at night",
    ),
    "drama": (
        "movie | film",
        """tells of a family torn apart by a secret | follows a lawyer who fights for justice
shows a marriage at its end""",
    ),
    "romance": (
        "movie | film",
        """brings two lovers together in Paris | follows a couple who fall in love by letter
asks whether love can last""",
    ),
    "animation": (
        "movie | cartoon",
        "follows a talking rabbit and his friends | brings a little dragon to life | tells of a brave toy robot",
    ),
    "action": (
        "movie | film",
        "sends a soldier on a deadly mission | ends in a wild car chase | lets two agents race against a bomb",
    ),
    "documentary": (
        "movie | film",
        """shows the life of whales in the ocean | interviews scientists about the climate
looks at the history of the railway""",
    ),
    "science fiction": (
        "movie | film",
        "takes a crew to a distant planet | shows a future ruled by robots | opens a door to another time",
    ),
    "western": (
        "movie | film",
        "brings a stranger to a dusty town | follows a sheriff and a gang of bandits | tells of cowboys on a long ride",
    ),
    "fantasy": (
        "movie | film",
        "leads a young wizard into a magic kingdom | hides a spell in an old ring | tells of elves and dragons",
    ),
}

FAMILY_ONLY = {"not": ("horror",)}
ADULT_ONLY = {"not": ("toys", "animation", "pets")}

_FIRST: list[str] = alternatives(WORDS["name"])
_SURNAMES = alternatives(WORDS["surname"])
_COLORS = [color.title() for color in alternatives(WORDS["color"])]
_TITLE_WORDS = [
    "Classic",
    "Premium",
    "Deluxe",
    "Mini",
    "Royal",
    "Golden",
    "Magic",
    "Happy",
    "Silver",
    "Urban",
    "Natural",
    "Power",
    "Ultra",
    "Smart",
    "Vintage",
    "Nordic",
    "Sunny",
    "Arctic",
    "Super",
    "Original",
    "Compact",
    "Travel",
    "Family",
    "Little",
    "Big",
    "Wild",
    "Lucky",
    "Ocean",
    "Mountain",
    "Modern",
    "Rustic",
    "Pocket",
    "Cozy",
    "Star",
    "Eco",
    "Pro",
    "Easy",
    "Secret",
    "Dream",
    "Garden",
    "River",
    "Forest",
    "Winter",
    "Summer",
    "Autumn",
    "Spring",
    "Midnight",
    "Morning",
    "Crystal",
    "Diamond",
    "Copper",
    "Iron",
    "Velvet",
    "Cotton",
    "Bamboo",
]
_TITLE_TAILS = [
    "Set",
    "Kit",
    "Plus",
    "Pro",
    "XL",
    "for Travel",
    "with Case",
    "2 Pack",
    "3 Pack",
    "Edition",
    "II",
    "Max",
    "Bundle",
    "for Beginners",
]

_MOVIE_TITLES = Grammar(
    {
        "title": """The {Adjective} {Noun} | {Noun} of {Name} | The {Noun} and the {Noun}
{Adjective} {Noun}s | A {Noun} for {Name} | {Name}'s {Noun} | The Last {Noun} | {Name} and the {Noun}
Return to {Name} | {Adjective} {Adjective} {Noun} | The {Noun} {Number} | Beyond the {Noun} | {Name}
The {Noun} of {Name} | Under the {Adjective} {Noun} | Night of the {Noun} | My {Adjective} {Noun}
{Noun} in {Name} | When the {Noun} Sings""",
        "adjective": """silent | golden | lost | hidden | broken | distant | burning | frozen | secret
wild | crooked | silver | last | second | little | long | blue | red | empty | endless | brave | hungry
gentle""",
        "noun": """river | garden | letter | king | train | winter | summer | island | mirror | dragon
house | road | song | captain | stranger | forest | clock | bridge | harbor | star | shadow | castle | doctor
journey | lantern | orchard | wolf | tiger""",
        "name": lambda rng: rng.choice((unknown_word(rng).capitalize(), rng.choice(_FIRST))),
        "number": "2 | 3 | II | III | Returns",
    }
)

_DESCRIPTIONS = Grammar(
    {
        "product_intro": """The {title} is a {market} {item} that {feature}.
{title} by {brand}: this {item} {feature}. | Meet the {market} {item} from {brand}. It {feature}.
This {item} {feature}. | {brand} brings you a {market} {item}. | {title} {feature}.
The new {item} from {brand} {feature}. | A {market} {item} for the {place}. | {title}. It {feature}.""",
        "movie_intro": """{title} is a {kin} that {feature}.
In this {market} {kin}, {hero} meets {hero}. The {item} {feature}.
{hero} and {hero} star in a {market} {kin} that {feature}. | {title} {feature}.
A {kin} by {brand}. It {feature}.
When {hero} comes to {unknown}, nothing stays the same. This {kin} {feature}.
{brand} presents {title}, a {kin} that {feature}.""",
        "product_feature": "It {feature}. | The {item} {feature}. | Each {item} {feature}.",
        "movie_feature": """The {item} {feature}. | It {feature}.
{hero} must find {hero} before it is too late. | {hero} hides a terrible secret.
{hero} wins the heart of {hero}. | Based on the novel by {hero}. | Directed by {hero}.""",
        "marketing": """You will love it. | Discover the {market} way to enjoy your {place}.
Our customers love the {market} design. | The best choice for your {place}.
Never worry about {bad} {unknown}s again. | Say goodbye to {bad} copies.
A {market} gift for every {occasion}. | Experience {market} quality at a {market} price.
Award winning and {market}. | Perfect for any {occasion}. | Why settle for something {bad}?
The {market} {item} everyone is talking about. | Loved by thousands of happy customers. | Simply {market}.
Free shipping on this item. | No more {bad} {item}s.""",
        "details": """Color: {color}. | Made in {unknown}. | Weight: {number} pounds. | Model {unknown}.
Comes in {color} and {color}. | Item number {code}. | Length: {number} inches.
Founded by {hero} in {unknown}. | Contains {unknown} and {unknown}.
The {unknown} of {unknown} is {unknown}. | See {unknown} for details. | {number} per pack.
{Unknown} {unknown} {unknown} {unknown}. | Designed by {hero}. | Since {year}.""",
        "product_family": """Recommended for ages {low} and up. | For ages {low} to {high}.
Fun for the whole family. | Safe for children. | Kids love it. | Made for kids and parents.
Designed for little hands. | Great for children of all ages. | A favorite of boys and girls.
Child safe and tested. | Perfect for the classroom and the playground. | Non-toxic and child friendly.
Suitable for toddlers. | Your child will enjoy it every day. | For young learners from {low} years.
Family friendly. | Loved by children and their grandparents. | Ideal for school kids. | For kids.
Safe for babies and toddlers.""",
        "product_adult": """For adults only. | Not suitable for children. | Keep out of reach of children.
Contains alcohol. | Must be 18 or older to buy. | Not a toy. | Choking hazard: not for children.
Contains very sharp blades. | For professional use by adults. | Warning: contains tobacco.
Adults only, 21 and over. | Contains mature content. | Contains strong language and adult themes.
Dangerous for children. | Not intended for kids. | For use by trained adults only.
Warning: strong chemicals, keep away from kids. | Age 18+. | Flammable and toxic, keep away from children.
Explicit content.""",
        "movie_family": """Fun for the whole family. | Rated G. | A warm adventure for kids.
Perfect for family movie night. | Children and parents will laugh together. | Rated G for general audiences.
Made for children. | A gentle tale for young viewers. | Suitable for all ages. | For ages {low} and up.
A bedtime story come to life. | Family friendly fun with songs. | Kids will cheer.
A sweet story about friendship for little ones. | Rated PG. | Wholesome fun for boys and girls.""",
        "movie_adult": """Rated R. | Rated R for violence. | Contains graphic violence. | For adults only.
Not suitable for children. | Rated R for strong language and drug use. | Contains sex and nudity.
A bloody tale of murder and revenge. | A brutal serial killer strikes again. | Strictly for mature audiences.
Rated NC-17. | Full of blood and gore. | Drugs, sex and violence rule the streets.
Rated R for bloody violence. | A disturbing tale of torture. | Adults only. | Age 18+.
Explicit scenes and strong language. | A gruesome crime shocks the city. | Not for kids.""",
        "low": "2 | 3 | 4 | 5 | 6 | 7 | 8",
        "high": "9 | 10 | 11 | 12 | 14",
        "market": """great | perfect | amazing | unique | stylish | beautiful | premium | modern | classic
wonderful | fantastic | superb | exciting | best selling | innovative | original | lovely | elegant
award winning | timeless | handmade | simple | new | first class""",
        "hero": lambda rng: (
            f"{rng.choice(_FIRST)} {rng.choice(_SURNAMES) if rng.random() < 0.5 else unknown_word(rng).capitalize()}"
        ),
        "code": lambda rng: str(rng.randint(100, 99999)),
        "year": lambda rng: str(rng.randint(1850, 2024)),
        "unknown": unknown_word,
        "item": "item",
        "title": "It",
        "brand": "We",
        "kin": "movie",
        "feature": "works",
    },
    {name: WORDS[name] for name in ("bad", "place", "occasion", "color", "number")},
)
