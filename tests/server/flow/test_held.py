"""The store of held pictures: least recently used first, bounded in bytes, nobody else's."""

from __future__ import annotations

import torch

from phs_server.flow.held import Held, HeldPictures, Key

A, B = bytes(32), b"\1" * 32


def held(numbers: int, width: int = 8) -> Held:
    return Held(torch.zeros(numbers, dtype=torch.float16), width, 6)


def test_the_one_used_longest_ago_goes_first() -> None:
    pictures = HeldPictures(limit=8)
    keys = [Key("me", A, (0, 0, side, side)) for side in (1, 2, 3)]
    for key in keys[:2]:
        pictures.put(key, held(2))
    assert pictures.get(keys[0]) is not None
    pictures.put(keys[2], held(2))
    assert [pictures.get(key) is not None for key in keys] == [True, False, True]
    assert (len(pictures), pictures.bytes_held) == (2, 8)


def test_what_is_larger_than_the_limit_is_not_held_and_costs_nobody_a_place() -> None:
    pictures = HeldPictures(limit=8)
    pictures.put(Key("me", A, None), held(4))
    pictures.put(Key("me", B, None), held(5))
    assert pictures.get(Key("me", A, None)) is not None and pictures.get(Key("me", B, None)) is None
    nothing = HeldPictures(limit=0)
    nothing.put(Key("me", A, None), held(1))
    assert not len(nothing)


def test_again_takes_the_place_of_before() -> None:
    pictures = HeldPictures(limit=8)
    for numbers in (1, 3, 2):
        pictures.put(Key("me", A, None), held(numbers))
    assert (len(pictures), pictures.bytes_held) == (1, 4)


def test_the_size_is_known_for_as_long_as_any_part_is_held() -> None:
    pictures = HeldPictures(limit=4)
    pictures.put(Key("me", A, None), held(1, width=80))
    pictures.put(Key("me", A, (0, 0, 2, 2)), held(1, width=80))
    pictures.put(Key("me", B, None), held(1))
    assert pictures.size_of("me", A) == (80, 6)
    pictures.put(Key("me", B, (0, 0, 2, 2)), held(1))
    assert pictures.size_of("me", A) is None and pictures.size_of("me", B) == (8, 6)


def test_nobody_gets_what_others_sent() -> None:
    pictures = HeldPictures(limit=100)
    pictures.put(Key("token 1", A, None), held(1))
    assert pictures.get(Key("token 2", A, None)) is None and pictures.size_of("token 2", A) is None
