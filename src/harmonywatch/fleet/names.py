"""The names of Harmonyland: given names times family names, invented, in several scripts.

All names are kept in NFC. Most are plain ASCII; some carry accents or another script, because names do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

GIVEN = """
Ada Alma Amos Anouk Arlo Asta Aurel Basil Beata Benno Birte Bram Bruna Calla Cato Cecil Clara Cosmo Dafna Dario Delia
Doran Edda Egon Elio Elsa Emeka Enzo Esme Ezra Fabia Falk Farid Fenna Flora Gala Gideon Greta Gus Hadi Hanne Hedda
Hugo Ida Idris Ilse Imani Ines Iris Ivo Jana Jaro Joost Juno Kaija Kalle Karim Keiko Kofi Lale Lars Leila Leo Lina
Livia Lotte Lucan Mabel Magda Malik Mara Matti Maud Mika Milan Mina Moses Nadia Naima Nell Nico Noor Odile Okon Olga
Orla Oskar Otto Paloma Pavel Petra Pia Quinn Rafi Rasmus Remy Rhea Romy Rosa Rufus Ruth Sabri Salka Samir Selma Silas
Sofi Stella Sven Tabea Tamar Tariq Tess Theo Tilda Timo Tove Ulla Umar Vera Vico Viola Wanda Wim Xenia Yara Yusuf Zeno
Zita Zora Zoë René Søren José Noël Jürgen Łucja Chloé Håkon Élodie Göran Inés Björk Agnès Šárka Œdine Nguyệt Ольга
Иван Ελένη Νίκος 美咲 지우 نور
"""

FAMILY_FIRST = """
Alder Amber Ash Barrow Beck Birch Black Bram Bright Brook Burn Chalk Clay Clover Cold Copper Crow Dale Dew Drift Dun
Elder Ember Fair Fern Field Flint Fox Frost Glen Gold Grey Hart Haw Hazel Heath Holm Iron Ivy Kestrel Lark Lime Linden
March Marl Mill Moss North Oak Oster Pine Quill Rain Raven Reed Rook Rowan Salt Sand Sedge Silver Slate Sorrel Stone
Storm Swan Thorn Vale Weir West White Wick Wild Willow Winter Wren Yarrow
"""

FAMILY_SECOND = """
bank beck bridge burn by combe croft den don fall field ford gate ham holt hurst land ley mere mont more ridge row
shaw son stead ton wald well wick wood worth yard
"""

FAMILY_OTHER = """
Müller Nuñez Brontë Dvořák Ångström Lindström Ørsted Façade Çelik Peña Żuraw Škoda Gómez Lefèvre Björnsson Hämäläinen
Nguyễn Đặng Петров Παππάς 田中 김 O'Dell Saint-Clair D'Arcy
"""


def _nfc(names: Iterable[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name) for name in names]


def given_names() -> list[str]:
    """Given names in NFC, each once, in a fixed order."""
    return list(dict.fromkeys(_nfc(GIVEN.split())))


def family_names() -> list[str]:
    """Family names in NFC, each once: the written ones and every pair of the two parts."""
    pairs = [first + second for first in FAMILY_FIRST.split() for second in FAMILY_SECOND.split()]
    return list(dict.fromkeys(_nfc(FAMILY_OTHER.split()) + pairs))


def name_of(index: int, given: list[str], family: list[str]) -> str:
    """The index-th name: all pairs first, then double family names. Another index is another name."""
    rest, first = divmod(index, len(given))
    double, last = divmod(rest, len(family))
    if double == 0:
        return f"{given[first]} {family[last]}"
    return f"{given[first]} {family[last]} {family[(double - 1) % len(family)]}"
