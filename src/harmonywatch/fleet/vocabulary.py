"""What is heard in Harmonyland: a vocabulary of our own, and the utterances made of it.

About 1,500 words from the lists below: everyday words, words of a kind of place, words of a mood, and compounds. How
often a word is said follows Zipf's law. People say the same things again and again, so what is heard is made of whole
utterances of WORDS_PER_UTTERANCE words, drawn from a pool for each kind of place and mood.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

WORDS_PER_UTTERANCE = 16
UTTERANCES_PER_POOL = 256
MOODS = ("calm", "uneasy", "heated")

EVERYDAY = """
the and today again morning please really never maybe always after before little another people someone nobody
everyone money ticket letter window kitchen bicycle umbrella weather rain sunshine Tuesday Friday weekend neighbour
cousin mother brother doctor teacher driver dinner breakfast coffee soup bread cheese apple onion button jacket shoes
ladder candle mirror engine battery signal screen number question answer story rumour promise birthday music radio
football garden chimney corner bridge tunnel river harbour station platform elevator stairs cellar office factory
library museum hospital later sooner nearly almost together alone upstairs outside inside behind yonder listen
remember forget waiting walking talking paying cooking sleeping working repairing counting painting singing borrowing
carrying café façade déjà
"""

PLACES = {
    "homes": """
laundry balcony landlord doorbell nursery curtains staircase postman mailbox lullaby attic homework
""",
    "market": """
tomatoes discount herring stall haggling basket receipt cashier melons scales butcher florist
""",
    "offices": """
meeting deadline printer invoice spreadsheet corridor manager minutes projector contract lanyard
""",
    "harbour": """
container crane seagull anchor customs ferry cargo tide mooring trawler lighthouse ropes
""",
    "campus": """
lecture exam thesis cafeteria semester laboratory scholarship notebook dormitory bookshop seminar
""",
    "gardens": """
fountain pigeons bench picnic orchard gravel swing chestnut hedge pavilion ducks rosebed
""",
}

MOOD_WORDS = {
    "calm": """
lovely gentle thanks welcome splendid laughter peaceful cheerful pleasure holiday friendly humming grateful relaxed
sunny kindly delighted harmony
""",
    "uneasy": """
late queue broken expensive worried complaint delayed tired missing crowded noisy strange refused unfair puzzled
grumbling forms deposit
""",
    "heated": """
enough shouting thief liar outrage shove coward smash threaten furious barricade whistle uproar scandal traitor
hooligan quarrel revenge fists disgrace
""",
}

COMPOUND_FIRST = """
tram rain night market garden bread paper water glass copper lantern window winter summer harbour bicycle station
kitchen tower cloud smoke silver school tunnel apple engine bridge carpet ticket barrel marble clock river barley
"""

COMPOUND_SECOND = """
light house line maker works side road stop yard keeper field door room path seller wheel ring song week price tax
permit count song-book guild watch fair dust law queue man bell roof post chain hook gate
"""


@dataclass(frozen=True)
class Utterances:
    """Pre-rendered utterances, `"a","b",...`: pool p holds rows [p * UTTERANCES_PER_POOL, (p + 1) * ...).

    Pool = kind of place * len(MOODS) + mood.
    """

    rendered: list[bytes]
    kinds: tuple[str, ...]


def vocabulary() -> list[str]:
    """Every word, each once, the most common first."""
    words = EVERYDAY.split()
    for group in (*MOOD_WORDS.values(), *PLACES.values()):
        words.extend(group.split())
    words.extend(first + second for second in COMPOUND_SECOND.split() for first in COMPOUND_FIRST.split())
    return list(dict.fromkeys(words))


def utterances(rng: np.random.Generator) -> Utterances:
    """Draws every pool: two words in three are anybody's, the rest belong to the place and to the mood."""
    words = vocabulary()
    place_in = {word: i for i, word in enumerate(words)}
    quoted = [msgspec.json.encode(word) for word in words]
    zipf = 1.0 / (np.arange(len(words)) + 3.0)
    for group in MOOD_WORDS.values():
        zipf[[place_in[word] for word in group.split()]] = 0.0
    common = zipf / zipf.sum()
    rendered: list[bytes] = []
    for place_words in PLACES.values():
        for mood in MOODS:
            weights = common * 0.66
            for group, share in ((place_words, 0.16), (MOOD_WORDS[mood], 0.18)):
                weights[[place_in[word] for word in group.split()]] += share / len(group.split())
            drawn = rng.choice(len(words), size=(UTTERANCES_PER_POOL, WORDS_PER_UTTERANCE), p=weights / weights.sum())
            rendered.extend(b",".join([quoted[i] for i in row]) for row in drawn.tolist())
    return Utterances(rendered, tuple(PLACES))
