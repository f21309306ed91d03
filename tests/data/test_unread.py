"""Photos that become unreadable while they are read again and again."""

from __future__ import annotations

import pytest
import torch

from fourm_lite.data.loader import ArrayStream
from fourm_lite.data.unread import Replaced
from fourm_lite.errors import FourMError
from fourm_lite.photos.records import UnreadablePhotoError


class Photos:
    """Numbers, of which some can be read no more."""

    def __init__(self, count, lost=()):
        self.count, self.lost = count, set(lost)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number in self.lost:
            raise UnreadablePhotoError(f"{number} is gone", str(number))
        return torch.tensor([number])


def test_every_step_gives_what_it_gave_but_for_the_lost_photo():
    whole, lacking = (ArrayStream(Photos(40, lost), 8, seed=3) for lost in ((), (7, 8)))

    for step in range(10):
        pairs = zip(
            whole.batch(step)[:, 0].tolist(), lacking.batch(step)[:, 0].tolist(), strict=True
        )
        assert all(got == (9 if want in (7, 8) else want) for want, got in pairs)

    assert {skipped.uri for skipped in lacking.replaced.lost.values()} == {"7", "8"}


def test_a_lost_photo_is_told_once_and_too_many_end_the_run(caplog):
    photos, replaced = Photos(40, [1]), Replaced(40)

    for _ in range(3):
        assert replaced.read(1, photos.__getitem__)[0] == 2
    assert sum("1 is gone" in line for line in caplog.messages) == 1

    photos.lost |= {2, 3}
    with pytest.raises(FourMError, match="3 of 40 photos have become unreadable"):
        replaced.read(1, photos.__getitem__)


def test_other_errors_are_nobodys_loss():
    def broken(number):
        raise FourMError("the table of labels is damaged")

    with pytest.raises(FourMError, match="damaged"):
        Replaced(40).read(1, broken)
