"""Word lists of the demo tasks, and invented words that nobody can have learnt by heart."""

from __future__ import annotations

from random import Random


def word_list(text: str) -> tuple[str, ...]:
    """The words of a text, as a tuple."""
    return tuple(text.split())


NOUNS = word_list(
    """lamp mug chair table box brush cherry basket bottle candle clock kettle ladder mirror needle pencil pillow rope
    shovel spoon towel wheel bench berry bell boot bucket button carpet coin cup desk dish door drum engine fan filter
    glass glove hammer hinge jacket jar key lens lock match motor nail notebook paint panel pipe plate pump ribbon ring
    saw screw seed sensor shelter sink stamp stove switch tent tile torch tray valve watch window wrench"""
)
ADJECTIVES = word_list(
    """red blue green white black yellow grey brown small large long short heavy light round square flat soft hard old
    new wooden copper steel silver golden plain bright dark cheap solid folding"""
)
CITIES = word_list(
    """Lisbon Oslo Berlin Madrid Paris London Rome Vienna Prague Dublin Athens Warsaw Helsinki Geneva Hamburg Lyon Porto
    Seville Turin Zagreb Tokyo Osaka Seoul Delhi Mumbai Lagos Nairobi Cairo Toronto Montreal Boston Chicago Denver
    Austin Seattle Lima Bogota Santiago Sydney Perth Zürich Kraków Málaga Orléans"""
)
PLAIN_WORDS = word_list(
    """the a my our every one some this that river mountain garden morning evening winter summer cloud stone bird horse
    fish bread butter apple lemon water fire wind rain snow light shadow song letter paper story road bridge ship train
    house kitchen school market doctor farmer teacher sister brother friend child king queen runs walks sings reads
    writes finds keeps brings opens closes sees hears likes makes takes gives slowly quickly quietly often never always
    today here there under over near behind with without and but very happy tired clever brave kind quiet early late
    warm cold deep tall empty full sweet strange"""
)

_ONSETS = word_list("b c d f g h j k l m n p qu r s t v w x y z br ch cl dr fl gr kr pl pr sh sk sl st th tr")
_VOWELS = word_list("a e i o u a e i o u ai ea ie oo ou")
_ENDS = ("", "", "", "", *word_list("n r l s t m k d x nd rt ng ck st"))


def invented_word(rng: Random) -> str:
    """A pronounceable word of two or three syllables, in small letters; there are millions of them."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
    return "".join(syllables) + rng.choice(_ENDS)


def plural(noun: str) -> str:
    """The regular English plural of a noun in small letters."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return noun[:-1] + "ies"
    return noun + "s"
