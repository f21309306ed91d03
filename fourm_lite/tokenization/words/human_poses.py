"""People as text: `human` with a box, then pose, rotation, camera and shape in any order.

Source:
    4D-Humans (Goel et al. 2023) for the groups; 4M-21 (Bachmann et al. 2024), appendix B
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from fourm_lite.errors import FourMError, ShapeError
from fourm_lite.modalities.values import Person
from fourm_lite.tokenization.vq.randomness import RandomSource
from fourm_lite.tokenization.words.coordinates import (
    BINS,
    Field,
    box_values,
    box_words,
    from_bin,
    groups_after,
    leading_coordinates,
    read_fields,
    to_bin,
    token_of,
    token_word,
    values_on_axis,
)

Group = Literal["pose", "global", "camera", "shape"]
ORDER: tuple[Group, ...] = ("pose", "global", "camera", "shape")
NOBODY = "none"

_HEADS = frozenset({"human", *ORDER, NOBODY})
# The ends of each group's numbers: they are spread over all bins.
_ENDS: dict[str, tuple[float, float]] = {
    "global": (-1.0, 1.0),
    "camera": (-1.0, 19.0),
    "shape": (-3.0, 3.0),
}
_LENGTHS = {"pose": 8, "global": 9, "camera": 3, "shape": 10}


def people_to_chunks(
    people: Iterable[Person],
    *,
    order: Sequence[Group] = ORDER,
    source: RandomSource | None = None,
    bins: int = BINS,
) -> list[str]:
    """One text a person, or the word `none` where there is nobody.

    Units:
        order: of the groups; with a `source` they are shuffled anew for each person instead
    """
    texts = []
    for person in people:
        groups = order if source is None else source.shuffled(list(order))
        texts.append(_person_text(person, groups, bins))
    return texts or [NOBODY]


def people_to_text(
    people: Iterable[Person],
    *,
    order: Sequence[Group] = ORDER,
    source: RandomSource | None = None,
    bins: int = BINS,
) -> str:
    """All people in one text; see `people_to_chunks`."""
    return " ".join(people_to_chunks(people, order=order, source=source, bins=bins))


def _person_text(person: Person, order: Sequence[Group], bins: int) -> str:
    words = ["human"]
    if person.box is not None:
        if len(person.box) != 4:
            raise ShapeError(f"a person's box has 4 numbers, got {len(person.box)}")
        a, b, c, d = (to_bin(x, bins) for x in person.box)
        words.append(box_words((a, b, c, d)))
    for group in order:
        values = person.rotation if group == "global" else getattr(person, group)
        if values is not None:
            words += [group, *_group_words(group, values, bins)]
    return " ".join(words)


def _group_words(group: Group, values: Sequence[float], bins: int) -> list[str]:
    if len(values) != _LENGTHS[group]:
        raise ShapeError(
            f"the group '{group}' of a person has {_LENGTHS[group]} numbers, got {len(values)}"
        )
    if group == "pose":
        return [_pose_word(int(value)) for value in values]
    low, high = _ENDS[group]
    return [f"v0={_bin(value, low, high, bins)}" for value in values]


def _pose_word(token: int) -> str:
    if not 0 <= token < 1024:
        raise FourMError(f"pose tokens lie in 0..1023, got {token}")
    return token_word(token)


def _bin(value: float, low: float, high: float, bins: int) -> int:
    if value != value:
        raise FourMError("a number of a person is NaN; drop the person or mend its file")
    scale = (bins - 1) / (high - low)
    # One product and one sum, as the original computes it: halves are rounded to even.
    return min(max(round(scale * min(max(value, low), high) - scale * low), 0), bins - 1)


def text_to_people(text: str, *, bins: int = BINS) -> tuple[Person, ...]:
    """The people of a text; groups that are incomplete stay `None`."""
    people: list[Person] = []
    for head, body in groups_after(read_fields(text), _HEADS):
        if head == "human":
            box = box_values(body)
            people.append(
                Person(box=None if box is None else tuple(from_bin(v, bins) for v in box))
            )
        elif people and head != NOBODY:
            people[-1] = _with_group(people[-1], head, body, bins)
    return tuple(people)


def _with_group(person: Person, group: str, body: list[Field], bins: int) -> Person:
    count = _LENGTHS[group]
    if group == "pose":
        tokens = [token_of(number) for number in leading_coordinates(body)[:count]]
        whole = [token for token in tokens if token is not None]
        return replace(person, pose=tuple(whole)) if len(whole) == count else person
    numbers = values_on_axis(body, count)
    if numbers is None:
        return person
    low, high = _ENDS[group]
    values = tuple(low + from_bin(number, bins) * (high - low) for number in numbers)
    if group == "global":
        return replace(person, rotation=values)
    if group == "camera":
        return replace(person, camera=values)
    return replace(person, shape=values)
