"""The words and sentences that generated products and reviews are made of; all of it written for this project."""

from __future__ import annotations

import random

from .grammar import alternatives

WORDS = {
    "good": """great | good | excellent | amazing | awesome | wonderful | fantastic | perfect | lovely
beautiful | nice | superb | outstanding | brilliant | fabulous | terrific | impressive | delightful
enjoyable | pleasant | cute | adorable | gorgeous | stylish | elegant | handy | useful | helpful | convenient
practical | reliable | sturdy | durable | solid | comfortable | cozy | soft | smooth | easy | fun
entertaining | funny | hilarious | interesting | informative | inspiring | charming | touching | thoughtful
exciting | engaging | gripping | clever | creative | fresh | tasty | delicious | yummy | crisp | clear
bright | sharp | efficient | powerful | reasonable | valuable | worthwhile | top notch | first class
remarkable | incredible | phenomenal | magnificent | splendid | marvelous | stunning | cool | neat
satisfying | refreshing | superior | exceptional | flawless | ideal | accurate | sweet | classy | pretty
super | educational | uplifting | the best | very good | so good | really nice | fine work""",
    "bad": """bad | terrible | awful | horrible | poor | disappointing | flimsy | useless | worthless
defective | broken | faulty | ugly | boring | dull | tedious | annoying | frustrating | confusing
uncomfortable | rough | weak | noisy | unreliable | inaccurate | misleading | fake | ridiculous | pathetic
lousy | dreadful | atrocious | unacceptable | unpleasant | disgusting | gross | nasty | stale | bland
tasteless | smelly | sloppy | shoddy | crooked | dirty | scratched | dead | buggy | clumsy | stiff | tacky
outdated | repetitive | predictable | pointless | silly | stupid | shallow | lame | wrong | incomplete
unusable | horrendous | subpar | inferior | second rate | disastrous | badly designed | the worst | very bad
so bad | really poor | a joke | depressing | worn out | cracked | leaky | blurry | overrated | dishonest
rude | shameful | messy | sad | disorganized | hard to use | hard to read | impossible to use | very poor
not right | too thin | too weak""",
    "very": """very | really | so | extremely | truly | absolutely | incredibly | quite | just | simply
pretty | surprisingly | super | totally | especially | always""",
    "thing": """it | it | it | this | this product | the product | this item | the item | this one
my purchase | the whole thing | my order | this thing | that""",
    "noun": """product | item | gift | purchase | buy | gadget | thing | set | one | choice | card
gift card | magazine | book | movie | film | toy | tool | machine | shirt | lamp | bag | game | read
subscription | show | issue | kit | idea | present | design | device | model | version | piece | pair | pan
recipe | album | song | app | phone | camera | watch | chair | blanket | jacket""",
    "who": """my wife | my husband | my son | my daughter | my mother | my father | my sister | my brother
my friend | my grandson | my granddaughter | my niece | my nephew | my boss | our teacher | my neighbor
the kids | my kids | my family | everyone | my boyfriend | my girlfriend | my coworker | my grandmother
our guests | she | he | they | mom | dad | the whole family | my aunt | my uncle""",
    "occasion": """birthday | Christmas | wedding | graduation | anniversary | holiday | party
Mother's Day | Father's Day | baby shower | thank you gift | housewarming | retirement | vacation | trip
school project | Valentine's Day | weekend""",
    "time": """one day | two days | three days | a week | two weeks | a month | three months | a year
one use | two uses | a few days | an hour | ten minutes | the first wash | six months | a couple of days
the second try | five minutes | a few months""",
    "age": "19 | 25 | 32 | 40 | 47 | 55 | 61 | 68 | 70",
    "day": """Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | Sunday | the weekend
the next day | the 3rd | May 12 | March""",
    "number": "two | three | four | five | six | seven | ten | twelve | 2 | 3 | 4 | 5 | 6 | 8 | 10 | 15 | 20",
    "money": """$5 | $8 | $10 | $12 | $15 | $20 | $25 | $30 | $40 | $50 | $60 | $75 | $100 | ten dollars
twenty dollars | fifty bucks""",
    "color": """red | blue | green | black | white | yellow | purple | orange | pink | gray | silver | brown
golden | navy""",
    "place": """kitchen | office | garage | living room | bedroom | garden | car | store | bathroom | desk
closet | basement | gym | school""",
    "part": """handle | zipper | lid | screen | button | strap | seam | cover | hinge | battery | cable
fabric | motor | wheel | case | cord | material | plastic | metal | paint | glue | leather | wood | stitching
switch | speaker | blade | spring | lens | binding | paper""",
    "name": """Anna | Ben | Carla | David | Emma | Frank | Grace | Henry | Iris | Jack | Karen | Leo | Maria
Nora | Oscar | Paula | Quinn | Rosa | Sam | Tina | Victor | Wendy | Max | Lucy | Tom | Julia | Peter | Laura
Mike | Susan | George | Helen | Robert | Alice""",
    "surname": """Smith | Jones | Brown | Miller | Davis | Garcia | Wilson | Moore | Taylor | Clark | Lewis
Walker | Hall | Young | King | Wright | Hill | Green | Adams | Baker | Nelson | Carter | Mitchell | Turner
Parker | Collins | Stewart | Morris | Reed | Cook""",
}

GENERAL = {
    "positive": """{Good}. | {Good}! | {Very} {good}. | {Very} {good} {noun}. | {Good} {noun}.
{Good} {noun}! | What a {good} {noun}! | It is {good}. | It's {very} {good}. | This {noun} is {good}.
This {noun} is {very} {good}. | The {noun} is {good} and {good}. | I {love} {thing}. | I {love} this {noun}.
We {love} {thing}. | I {love} {thing} and would buy it again. | I {love} how {good} it is.
{who} {loves} it. | {who} {loves} this {noun}. | {who} {loves} {thing} so much.
Bought it for {who} and they {love} it. | {who} was {happy}. | {who} was {very} {happy} with it.
I am {happy} with {thing}. | I am {very} {happy} with this {noun}. | {Very} {happy}. | {Happy} with {thing}.
We were {happy} with the {noun}. | Could not be happier. | I couldn't be happier with {thing}.
I would {recommend} it. | I {recommend} this {noun}. | I {recommend} it to everyone. | Would recommend.
Highly recommended. | Recommended! | I would buy it again. | I will buy another one. | Will order again.
We will definitely buy from them again. | I will be back for more. | Five stars. | Five stars! | 5 stars.
Ten out of ten. | 10/10. | A+. | Two thumbs up. | Thumbs up. | Well done. | Thank you! | Thanks. | Yes!
Worth every penny. | Well worth it. | It was worth the wait. | You can't go wrong with {thing}.
Can't go wrong. | Can't beat it. | Works like a charm. | Works {great}. | It works {great}.
Works {great} for me. | Worked {great}. | It worked {great} for {who}. | It does its job {great}.
Exactly what I {needed}. | Just what I {needed}. | It is exactly as described. | As described.
Just as described. | Just as pictured. | As expected. | No complaints. | No complaints at all. | No problems.
No problems so far. | No issues with it. | I have had no problems with it. | Nothing bad to say.
I have never had a problem with {thing}. | Not bad at all. | Not a single complaint. | Never a dull moment.
It never fails. | It never disappoints. | It exceeded my expectations. | Better than expected.
Better than I expected. | Even better than the last one. | Far better than the old one.
The best {noun} I have ever {bought}. | Best {noun} ever. | One of the best {noun}s I have {bought}.
The best. | My favorite {noun}. | My new favorite. | A must have. | A must have for the {place}.
Perfect gift. | Made a {good} gift. | It makes a {good} gift for {who}. | {Good} gift for {who}.
I was skeptical at first, but it is {good}. | I had doubts, but I {love} it.
I was worried, but it turned out {good}. | I did not expect much, but it is {good}.
It is not {bad}, it is {good}. | Other {noun}s are {bad}, but this one is {good}.
Unlike my old {noun}, this one is {good}. | Not {bad}. | Not {bad} at all. | So glad I bought it.
I am so glad I found this {noun}. | So happy I got it. | I can't live without it now.
I use it every day and {love} it. | Look forward to using it. | I look forward to every new one.
I can't wait to use it. | It keeps us happy. | It made my day. | It made {who} smile. | Enjoyed it very much.
I enjoyed every minute. | I enjoy it every month. | Always {good}. | Always a {good} choice. | Easy to use.
Easy to use and {good}. | It fits my needs {great}. | It looks {good}. | Looks {good} and works {great}.
It feels {good}. | {Good} {noun}, {good} {noun}. | {Good} stuff. | Love it. | Love it! | Loved it.
Love this {noun}. | Love these. | Like it. | Liked it a lot. | I like it. | {Great}. | {Great}! | all good
Good one. | Keep up the good work. | A real treat. | Brilliant. | Who would not {love} this {noun}?
What is not to like? | It has everything I wanted. | I learned so much from it. | We use it all the time.
It saved me a lot of time.""",
    "negative": """{Bad}. | {Bad}! | {Very} {bad}. | {Very} {bad} {noun}. | {Bad} {noun}. | {Bad} {noun}!
What a {bad} {noun}! | It is {bad}. | It's {very} {bad}. | This {noun} is {bad}.
This {noun} is {very} {bad}. | The {noun} is {bad} and {bad}. | It was {bad}. | I {hate} {thing}.
I {hate} this {noun}. | We {hate} {thing}. | I {hate} how {bad} it is. | {who} {hates} it.
{who} {hates} this {noun}. | {who} did not like it. | Bought it for {who} and they {hate} it.
{who} was {unhappy}. | {who} was {very} {unhappy} with it. | I am {unhappy} with {thing}.
I am {very} {unhappy} with this {noun}. | {Very} {unhappy}. | {Unhappy} with {thing}.
We were {unhappy} with the {noun}. | Not happy. | I am not happy with {thing}. | Not satisfied at all.
Not impressed. | I would not recommend it. | I do not recommend this {noun}. | I can't recommend {thing}.
Would not recommend. | Not recommended. | I cannot recommend it to anyone. | I would not buy it again.
I will never buy another one. | Never again. | I won't be back. | I will not order again.
We will never buy from them again. | I will not renew. | One star. | One star! | 1 star. | Zero stars.
I would give it zero stars if I could. | Zero out of ten. | 1/10. | Two thumbs down. | Thumbs down.
Shame on them. | No thanks. | Waste of money. | A waste of money. | Waste of time. | What a waste.
Total waste of time and money. | Don't waste your money. | Save your money. | I wasted {money} on it.
Not worth it. | Not worth the money. | Not worth {money}. | It was not worth the wait. | Do not buy.
Do not buy this {noun}. | Don't buy it. | Don't bother. | Stay away. | Avoid. | Buyer beware. | Skip it.
It does not work. | Doesn't work. | Did not work. | It didn't work for me. | It never worked.
Stopped working after {time}. | It broke after {time}. | It fell apart after {time}. | It quit after {time}.
It worked for {time}, then it died. | It lasted {time}. | It was dead after {time}. | I could not use it.
Could not get it to work. | It would not work. | It does not do what it says. | Not what I {needed}.
Not what I expected. | It is not as described. | Not as described. | Not as pictured.
Nothing like the picture. | It is not what I ordered. | They sent the wrong one. | I want my money back.
I want a refund. | Returned it. | I had to return it. | I sent it back. | It is going back. | Threw it away.
I had to throw it in the trash. | Asked for a refund. | Nothing but problems. | Nothing but trouble.
Too many problems. | So many problems with this {noun}. | I have had problems with it since day one.
Full of problems. | Full of errors. | It did not meet my expectations. | Worse than expected.
I expected better. | I expected more. | Even worse than the last one. | It is a big letdown.
What a letdown. | What a disappointment. | The worst {noun} I have ever {bought}. | Worst {noun} ever.
One of the worst {noun}s I have {bought}. | The worst. | My worst purchase. | A total rip off.
What a rip off. | This is a scam. | A scam. | Not {good}. | Not {good} at all. | It is not {good}.
It is not {very} {good}. | This {noun} is not {good}. | It isn't {good}. | It wasn't {good} at all.
Not a {good} {noun}. | Hardly {good}. | Far from {good}. | Anything but {good}.
I wanted to love it, but it is {bad}. | I had high hopes, but it is {bad}.
It looked {good}, but it turned out {bad}. | I thought it would be {good}, but it is {bad}.
It sounds {good}, but it is {bad}. | Other {noun}s are {good}, but this one is {bad}.
Unlike my old {noun}, this one is {bad}. | It used to be {good}, but now it is {bad}.
I usually love this brand, but this {noun} is {bad}. | I regret buying it. | I wish I had not bought it.
I wish I could get my money back. | So sorry I bought it. | I made a mistake buying {thing}.
I am sorry I gave this as a gift. | Garbage. | Junk. | Trash. | Total junk. | Piece of junk. | Pure garbage.
A mess. | A complete mess. | A disaster. | A joke. | Crap. | It is a cheap copy. | Cheap junk.
False advertising. | They lied. | No help at all. | Nobody answered. | No value. | There was nothing in it.
It was empty. | There was no money on it. | It was already used. | It could not be used. | It would not scan.
It did not activate. | Too many ads. | Nothing but ads. | Hard to use. | I found nothing of use in it.
It is getting worse. | It gave me a headache. | I fell asleep. | I gave up. | I could not finish it.
I cancelled. | Cancelled it. | Disappointed. | Very disappointed! | So disappointed.
Extremely disappointed in {thing}. | {Unhappy}! | I was embarrassed. | {Terribly}. | It works {terribly}.
Works {terribly}.""",
    "neutral": """It is okay. | It's ok. | It's okay I guess. | Ok. | Okay. | It is average.
Average {noun}. | An average {noun}. | Just average. | Nothing special. | It is nothing special.
Neither good nor bad. | It is neither {good} nor {bad}. | Not great, not terrible. | Not good, not bad.
It does the job, nothing more. | So so. | It is so-so. | I have mixed feelings.
Mixed feelings about {thing}. | It is what it is. | Could be better, could be worse. | Three stars.
3 stars. | Decent but not {good}. | Some of it is {good}, some of it is {bad}. | Partly {good}, partly {bad}.
Fine I guess. | Meh. | Middle of the road. | It is an ordinary {noun}. | Acceptable. | It is passable.
I neither like nor dislike it. | I don't love it and I don't hate it.
I have no strong opinion about {thing}. | It is just a {noun}. | Fair. | It is fair.
I am not sure what to think about {thing}. | Hard to say if it is {good} or {bad}.
A {good} idea, but a {bad} {noun} in places. | There are pros and cons. | It has its ups and downs.
It's a {noun}, that's all. | Five out of ten. | Nothing to write home about.""",
    "love": """love | love | like | really like | enjoy | adore | really enjoy | truly love
absolutely love | am in love with | am a fan of | loved | liked | enjoyed | appreciate""",
    "loves": """loves | loved | likes | liked | enjoys | enjoyed | adores | is happy with
was thrilled with | is crazy about | really likes | is in love with""",
    "hate": """hate | dislike | really hate | hated | disliked | don't like | do not like | didn't like
did not like | did not enjoy | can't stand | regret buying | am fed up with | am sick of""",
    "hates": """hates | hated | dislikes | does not like | didn't like | did not enjoy
was disappointed with | is unhappy with | can't stand | complained about | refuses to use""",
    "happy": """happy | pleased | satisfied | thrilled | delighted | impressed | excited | glad | amazed
grateful | content""",
    "unhappy": """unhappy | disappointed | dissatisfied | upset | annoyed | frustrated | angry | let down
displeased | not happy | not pleased | not satisfied | not impressed | furious | mad""",
    "recommend": "recommend | highly recommend | definitely recommend | strongly recommend | gladly recommend",
    "great": """great | well | perfectly | wonderfully | beautifully | very well | just fine | great
nicely | like new | good | flawlessly | as it should | great | perfect | smoothly""",
    "terribly": "badly | poorly | terribly | only half of the time | worse every day | not at all | very badly",
    "needed": "needed | wanted | ordered | was looking for | hoped for | expected | asked for",
    "bought": "bought | owned | used | seen | tried | read | ordered | had | found",
}

ASPECTS: dict[str, dict[str, str]] = {
    "delivery": {
        "positive": """Delivery was {fast}. | The delivery was {very} {fast}. | Shipping was {fast}.
{Fast} shipping. | {Fast} delivery! | It arrived {early}. | It came in the mail {early}.
It was delivered {early}. | My order arrived {early}. | The package arrived {early}.
It shipped the same day and arrived {early}. | The courier was friendly and {fast}.
Shipped {fast} and got here {early}. | I had it in my mailbox {early}. | Got here {early}.
Received it {early}.""",
        "negative": """Delivery was {slow}. | The delivery was {very} {slow}. | Shipping was {slow}.
{Slow} shipping. | {Slow} delivery! | It arrived {late}. | It came in the mail {late}.
It was delivered {late}. | My order arrived {late}. | It never arrived. | The package arrived {late}.
The package never came. | It was shipped to the wrong address. | The courier left it in the rain.
I am still waiting for it to arrive. | Got here {late}. | It got lost in the mail.
Tracking said delivered, but I never received it. | The shipment was delayed again and again.
Shipping took forever.""",
        "neutral": """It arrived on {day}. | Shipping took {number} days. | It was delivered on {day}.
The courier brought it on {day}. | Delivery took {number} days. | It came in the mail on {day}.
It was shipped on {day}.""",
        "fast": "fast | quick | speedy | prompt | super fast | on time | very quick | lightning fast",
        "early": """early | on time | two days early | the next day | in {number} days | ahead of schedule
right on time | quickly | fast | a day early | sooner than expected | promptly | in no time""",
        "slow": "slow | late | very slow | delayed | painfully slow | weeks late | much too slow | a nightmare",
        "late": """late | {number} weeks late | too late for the {occasion} | after {number} weeks
{number} days late | a month late | much later than promised | after the {occasion} | way too late""",
    },
    "quality": {
        "positive": """The {part} is {strong}. | The {part} feels {strong}. | It is well made.
Very well made. | The quality is {great}. | {Great} quality. | The build quality is {great}.
The {part} and the {part} are {strong}. | Solid construction. | It feels solid and {strong}.
The {part} held up for {time} without a scratch. | The craftsmanship is {great}.
You can feel the quality of the {part}. | It is built to last. | Made of {strong} {part}.""",
        "negative": """The {part} is {poor}. | The {part} feels {poor}. | It is poorly made.
Very cheaply made. | The quality is {awful}. | {Awful} quality. | The build quality is {awful}.
The {part} broke after {time}. | The {part} fell off after {time}. | The {part} came apart.
The {part} tore after {time}. | The {part} and the {part} are {poor}. | The craftsmanship is {awful}.
The {part} cracked after {time}. | You can see that the {part} is {poor}. | The quality has gone down.""",
        "neutral": """The {part} is {color}. | It is made of {part}. | The {part} is plain.
The quality is average. | The {part} is standard.""",
        "strong": """strong | sturdy | solid | durable | thick | well made | high quality | tough | smooth
reliable | robust""",
        "poor": """flimsy | weak | thin | cheap | defective | loose | brittle | low quality | rough
badly made | fragile""",
        "great": "great | excellent | superb | outstanding | amazing | very good | high | top notch",
        "awful": "awful | poor | bad | terrible | very low | disappointing | horrible | questionable",
    },
    "price": {
        "positive": """The price was {fair}. | {Fair} price. | {Fair} price! | Great value for the money.
Good value. | It was a bargain. | What a bargain. | I paid only {money}. | Cheaper than in the store.
You get a lot for the price. | It cost only {money}. | A steal at {money}. | I saved {money}.
It is affordable. | Very affordable. | The cost was {fair}. | Great deal for {money}.
Best price I could find. | It was on sale for {money}.""",
        "negative": """The price was {unfair}. | {Unfair} price. | {Unfair} price! | Not worth the price.
Way overpriced. | It is overpriced. | Too expensive. | It was too expensive for what it is.
It cost {money} more than in the store. | You pay too much for too little. | It cost too much.
{money} is too much for this. | The cost was {unfair}. | It is cheaper everywhere else.
They raised the price by {money}. | Much too expensive at {money}. | They charged me {money} extra.
I paid {money} and feel cheated.""",
        "neutral": """I paid {money}. | It cost {money}. | The price was {money}.
The price is the same as in the store. | It was {money} in the shop.""",
        "fair": "fair | great | good | low | excellent | reasonable | unbeatable | very good | amazing",
        "unfair": "unfair | high | too high | outrageous | ridiculous | crazy | much too high | insane",
    },
    "service": {
        "positive": """Customer service was {kind}. | The seller was {kind}. | The support team was {kind}.
{Kind} customer service. | The seller answered my questions right away.
Customer service sent me a new one for free. | The staff was {kind}.
Support fixed my problem in {number} minutes. | The seller went above and beyond. | Great support.
I called support and they were {kind}. | The agent on the phone was {kind}.""",
        "negative": """Customer service was {unkind}. | The seller was {unkind}.
The support team was {unkind}. | {Unkind} customer service. | The seller ignored my emails.
Customer service hung up on me. | The staff was {unkind}. | Support never answered.
The seller refused a refund. | I called support {number} times and got no help. | The seller lied to me.
No support at all. | I called support and they were {unkind}. | The agent on the phone was {unkind}.
Customer service did not care.""",
        "neutral": """I called customer service once. | I asked the seller a question.
The seller wrote me an email. | I talked to support on {day}.""",
        "kind": """helpful | friendly | kind | polite | excellent | responsive | patient | great | wonderful
professional""",
        "unkind": """rude | unhelpful | useless | terrible | slow | impolite | unfriendly | awful | arrogant
unprofessional | horrible""",
    },
    "packaging": {
        "positive": """The packaging was {pretty}. | {Pretty} packaging. | It was packed {prettily}.
It was wrapped {prettily}. | The box was {pretty}. | It was packed in a {pretty} box.
Packed with care and plenty of bubble wrap. | The wrapping was {pretty}.""",
        "negative": """The packaging was {torn}. | {Torn} packaging. | The box was {torn}.
The wrapping was {torn}. | It was packed badly. | There was no bubble wrap in the box.
The box was crushed and {torn}. | It was poorly wrapped. | So much useless packaging.
The seal of the box was broken.""",
        "neutral": """The packaging is {color}. | It was packed in a {color} box. | The box is {color}.
It is wrapped in paper. | The packaging is plain.""",
        "pretty": "nice | lovely | pretty | beautiful | perfect | neat | elegant | secure | excellent | careful",
        "prettily": "nicely | beautifully | perfectly | very well | securely | carefully | with care",
        "torn": "torn | damaged | dirty | crushed | open | wet | broken | ripped | bent | terrible | careless",
    },
    "size": {
        "positive": """It fits {great}. | The size is {perfect}. | {Perfect} fit. | True to size.
{Perfect} size for the {place}. | It fits {who} {great}. | The fit is {perfect}.
It fits in my {place} {great}.""",
        "negative": """It is too {small}. | The size is wrong. | It does not fit. | It runs {small}.
It is much too {small} for {who}. | Way too {small}. | The fit is terrible. | It did not fit in my {place}.
{number} inches too {small}. | I ordered a large and it is too {small}.""",
        "neutral": """It is {number} inches wide. | It is medium size. | The size is on the label.
It is {number} inches tall. | I ordered a size {number}.""",
        "perfect": "perfect | great | ideal | excellent | good",
        "small": "small | tight | big | large | short | long | tiny | wide | narrow | huge",
        "great": "perfectly | great | well | very well | like a glove | just right | nicely",
    },
    "story": {
        "positive": """The plot is {gripping}. | The story is {gripping}. | A {gripping} story.
The story kept me hooked until the end. | The ending of the story was {gripping}. | The script is {gripping}.
The characters are {gripping}. | A story full of {gripping} twists.""",
        "negative": """The plot is {dull}. | The story is {dull}. | A {dull} story.
The story makes no sense. | The ending of the story was {dull}. | The script is {dull}.
The characters are {dull}. | There is no plot at all. | The plot has too many holes.""",
        "neutral": """The story takes place in a small town. | The plot is about {who}.
The story is told in {number} parts. | The script follows the book.""",
        "gripping": """gripping | clever | moving | beautiful | brilliant | exciting | touching | original
well written | great | charming""",
        "dull": """dull | boring | silly | predictable | confusing | weak | stupid | badly written
terrible | shallow | pointless""",
    },
    "acting": {
        "positive": """The acting is {strong}. | The actors are {strong}. | {Strong} acting.
The cast is {strong}. | The lead actress was {strong}. | {name} {surname} gives a {strong} performance.
A {strong} cast.""",
        "negative": """The acting is {wooden}. | The actors are {wooden}. | {Wooden} acting.
The cast is {wooden}. | The lead actor was {wooden}. | {name} {surname} gives a {wooden} performance.
A {wooden} cast. | The actors look bored.""",
        "neutral": """{name} {surname} plays the lead role. | The cast has {number} actors.
The main actor is {name} {surname}.""",
        "strong": """strong | superb | great | wonderful | brilliant | excellent | powerful | outstanding
perfect | amazing""",
        "wooden": "wooden | terrible | awful | bad | weak | horrible | laughable | stiff | poor | lifeless",
    },
}

#: Sentences that say nothing about opinion or aspect.
CONTEXT = {
    "context": """I bought this for {who}. | This was a {occasion} gift for {who}.
I ordered {number} of them. | I got it for the {place}. | It is {color}. | I use it in the {place}.
We have a {color} one in the {place}. | {who} asked for one. | I got the {color} one.
We used it on our {occasion}. | This is my {color} one. | I have had one for {time}.
It was for a {occasion}. | Purchased for {who} as a {occasion} gift. | {who} has the same {noun}.
I bought one last year too. | I saw it in the {place} of a friend. | My name is {name}.
I live near {unknown}. | The {unknown} came with a {unknown}. | I use it with my {unknown}.
{who} collects {unknown}s. | It is from {unknown}. | I read about it in the {unknown} {noun}.
We took it to {unknown}. | I am {age} years old. | {name} told me about it. | I put it next to the {unknown}.
First I used {unknown}, then {unknown}. | There are {number} {unknown}s in it. | {who} and {name} share one.
I have been using it with {unknown} {unknown} since {day}. | I chose {color} because of the {place}.
We go to {unknown} with {who} every year. | This {noun} replaces a {color} {noun}.
Let me tell you about it. | Here is my review."""
}


COUNTRIES = alternatives(
    """Argentina | Australia | Austria | Belgium | Brazil | Bulgaria | Canada | Chile | China | Colombia
Croatia | Cuba | Denmark | Egypt | Estonia | Ethiopia | Finland | France | Germany | Ghana | Greece | Hungary
Iceland | India | Indonesia | Iran | Ireland | Israel | Italy | Jamaica | Japan | Kenya | Latvia | Lithuania
Malaysia | Mexico | Morocco | Nepal | Netherlands | New Zealand | Nigeria | Norway | Pakistan | Peru
Philippines | Poland | Portugal | Romania | Russia | Saudi Arabia | Serbia | Singapore | Slovakia | Slovenia
South Africa | South Korea | Spain | Sweden | Switzerland | Taiwan | Thailand | Turkey | Ukraine
United Kingdom | United States | USA | UK | Uruguay | Vietnam"""
)


def unknown_word(rng: random.Random) -> str:
    """A made-up word of one to three syllables, so that readers meet words that no list holds."""
    word = ""
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        word += rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.4 else "")
    return word if len(word) > 2 else word + rng.choice(_ENDINGS)


_ONSETS = [
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "br",
    "ch",
    "cl",
    "cr",
    "dr",
    "fl",
    "fr",
    "gl",
    "gr",
    "pl",
    "pr",
    "qu",
    "sh",
    "sk",
    "sl",
    "sm",
    "sp",
    "st",
    "th",
    "tr",
]
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou"]
_CODAS = ["l", "m", "n", "r", "s", "t", "k", "d", "x", "nd", "nt", "rd", "st", "ck", "ss", "sh"]
_ENDINGS = ["ron", "len", "tor", "lia", "nex", "dor", "vik", "mar"]
