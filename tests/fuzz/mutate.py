"""A small mutator: flips, truncations, splices, extremes of integers, words of a dictionary."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

EXTREMES = tuple(
    sorted(
        {
            value + offset
            for bits in (7, 8, 15, 16, 24, 31, 32, 33, 53, 63, 64)
            for value in (1 << bits,)
            for offset in (-1, 0, 1)
        }
        | {0, 1, 2, 3, 10, 16, 84, 1000}
    )
)
NUMBERS = (
    *(str(value).encode() for value in EXTREMES),
    *(b"-%d" % value for value in (1, 2, 1 << 31, 1 << 63)),
    b"1e999", b"-1e999", b"1e400", b"NaN", b"Infinity", b"0.5", b"9" * 5000, b"0x10", b"null", b"true",
    b'""', b"[]", b"{}", b'"x"', b"[[]]",
)  # fmt: skip
WORDS = (
    b"\0",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b'"',
    b"{",
    b"[" * 3000,
    b"<",
    b"\xff\xfe",
    b"\\u0000",
    b"\xed\xa0\x80",
)
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")
MAX_BYTES = 1 << 17  # of an input


def mutate(chance: random.Random, corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """An input made of one of `corpus`, by one to six changes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 6))):
        _change(chance, data, corpus, words)
    return bytes(data[:MAX_BYTES])


def _change(
    chance: random.Random, data: bytearray, corpus: Sequence[bytes], words: Sequence[bytes]
) -> None:
    place = chance.randrange(len(data) + 1)
    kind = chance.randrange(11)
    if kind == 0 and place < len(data):
        data[place] ^= 1 << chance.randrange(8)
    elif kind == 1 and place < len(data):
        data[place] = chance.randrange(256)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data += chance.randbytes(chance.choice((1, 4, 32, 300)))
    elif kind == 4:
        del data[place : place + chance.choice((1, 2, 4, 8, 50))]
    elif kind == 5:
        data[place:place] = chance.randbytes(chance.choice((1, 2, 4, 8)))
    elif kind == 6:  # splice
        other = chance.choice(corpus)
        data[place:] = other[chance.randrange(len(other) + 1) :]
    elif kind == 7:  # repeat a part
        part = data[place : place + chance.randrange(1, 100)]
        data[place:place] = part * chance.choice((1, 1, 2, 50))
    elif kind == 8:
        width = chance.choice((1, 2, 4, 8))
        value = chance.choice(EXTREMES) & ((1 << 8 * width) - 1)
        if chance.random() < 0.2:
            value = (1 << 8 * width) - 1 - value
        data[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
    elif kind == 9:
        found = list(_NUMBER.finditer(data[:4096]))
        if found:
            one = chance.choice(found)
            data[one.start() : one.end()] = chance.choice(NUMBERS)
    else:
        word = chance.choice((*WORDS, *NUMBERS, *words))
        data[place : place + (len(word) if chance.random() < 0.5 else 0)] = word
