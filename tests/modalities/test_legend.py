"""Lines of a legend: as long as there is room, and cut where a reader expects it."""

from fourm_lite.modalities.legend import font, wrapped


def test_a_long_name_is_cut_after_its_hyphens():
    lines = wrapped("dogs-at-a-window", int(font().getlength("dogs-at-a-wi")))

    assert "".join(lines) == "dogs-at-a-window"
    assert all(line.endswith("-") for line in lines[:-1])


def test_a_word_without_a_hyphen_goes_on_in_the_next_line():
    room = int(font().getlength("skyscr"))

    lines = wrapped("skyscrapers", room)

    assert "".join(lines) == "skyscrapers"
    assert all(font().getlength(line) <= room for line in lines)
