import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourm_lite.errors import ConfigError, FourMError, ShapeError
from fourm_lite.modalities.spec import Crop
from fourm_lite.modalities.values import Box, Person, PointQuery, Segment, crop_boxes
from fourm_lite.tokenization.vq.randomness import TorchSource
from fourm_lite.tokenization.words.instances import (
    boxes_to_text,
    grid_points,
    people_to_text,
    points_to_text,
    text_to_boxes,
    text_to_people,
    text_to_points,
)
from fourm_lite.tokenization.words.metadata import (
    FIELDS,
    Scale,
    metadata_to_chunks,
    metadata_to_text,
    palette_to_text,
    text_to_metadata,
    text_to_palette,
)
from fourm_lite.tokenization.words.sequences import FORMATS, sequence_format
from fourm_lite.tokenization.words.text import train_text_tokenizer

UNIT = st.floats(0, 1)
NAMES = st.sampled_from(["dog", "wine glass", "traffic light"])
BOXES = st.lists(st.builds(Box, UNIT, UNIT, UNIT, UNIT, NAMES, st.just(0.9)), max_size=6)
PEOPLE = st.lists(
    st.builds(
        Person,
        box=st.tuples(UNIT, UNIT, UNIT, UNIT),
        pose=st.tuples(*[st.integers(0, 1023)] * 8),
        rotation=st.tuples(*[st.floats(-1, 1)] * 9),
        camera=st.tuples(*[st.floats(-1, 19)] * 3),
        shape=st.tuples(*[st.floats(-3, 3)] * 10),
    ),
    min_size=1,
    max_size=3,
)
BYTE = st.integers(0, 255)
PALETTES = st.lists(st.tuples(BYTE, BYTE, BYTE), max_size=7)
PIXEL = st.integers(0, 223)
SEGMENTS = st.builds(
    Segment, st.tuples(PIXEL, PIXEL, PIXEL, PIXEL), st.tuples(*[st.integers(0, 1023)] * 16)
)
POINTS = st.lists(
    st.builds(PointQuery, PIXEL, PIXEL, st.lists(SEGMENTS, max_size=2).map(tuple)), max_size=4
)
# Words that formats know, words that they do not, and numbers out of any order.
WORD = st.one_of(
    st.sampled_from(["human", "pose", "global", "camera", "shape", "point", "polygon", "none"]),
    st.sampled_from(["dog", "[S_1]", "[PAD]", "[EOS]", "v0=", "v9=1", "=", "v0=99999999999999"]),
    st.builds("v{}={}".format, st.integers(0, 3), st.integers(0, 1200)),
)
BROKEN = st.one_of(st.lists(WORD, max_size=60).map(" ".join), st.text(max_size=80))


def near(got, want, width):
    return len(got) == len(want) and all(
        abs(a - b) <= width / 2 + 1e-9 for a, b in zip(got, want, strict=True)
    )


@given(BOXES)
def test_boxes_come_back_within_half_a_bin_nearest_first(boxes):
    read = text_to_boxes(boxes_to_text(boxes))

    want = sorted(boxes, key=lambda b: math.hypot(b.xmin, b.ymin))
    assert [b.name for b in read] == [b.name for b in want]
    for a, b in zip(read, want, strict=True):
        corners = (a.xmin, a.ymin, a.xmax, a.ymax), (b.xmin, b.ymin, b.xmax, b.ymax)
        assert near(*corners, 1 / 999)


def test_unsure_boxes_are_left_out():
    boxes = [Box(0, 0, 1, 1, "a", 0.6), Box(0, 0, 1, 1, "b", 0.59)]

    assert boxes_to_text(boxes) == "v0=0 v1=0 v2=999 v3=999 a"


def test_halves_of_a_bin_go_to_the_even_one():
    assert boxes_to_text([Box(0.5, 0.5, 0.5, 0.5)], bins=2) == "v0=0 v1=0 v2=0 v3=0"
    assert boxes_to_text([Box(0.5, 0.5, 0.5, 0.5)], bins=4) == "v0=2 v1=2 v2=2 v3=2"


@given(BOXES)
def test_flipping_a_crop_twice_changes_nothing(boxes):
    boxes = [b for b in boxes if b.xmin + 0.01 < b.xmax and b.ymin + 0.01 < b.ymax]
    mirror = Crop(top=0, left=0, height=50, width=80, whole=(50, 80), hflip=True)

    twice = crop_boxes(crop_boxes(boxes, mirror), mirror)

    for a, b in zip(twice, boxes, strict=True):
        assert near((a.xmin, a.xmax, a.ymin), (b.xmin, b.xmax, b.ymin), 1e-9)


def test_a_crop_drops_what_it_does_not_show():
    crop = Crop(top=0, left=0, height=10, width=10, whole=(20, 20))

    seen = crop_boxes([Box(0.6, 0.6, 0.9, 0.9, "out"), Box(0.25, 0.25, 0.75, 0.75, "part")], crop)

    assert seen == (Box(0.5, 0.5, 1.0, 1.0, "part"),)
    assert crop_boxes([Box(0.25, 0.25, 0.75, 0.75)], crop, min_visibility=0.3) == ()


def test_a_crop_that_does_not_know_the_picture_cannot_move_boxes():
    with pytest.raises(FourMError, match="whole"):
        crop_boxes([], Crop(top=0, left=0, height=1, width=1))


@given(st.fixed_dictionaries({name: st.floats(0, 1) for name in FIELDS}))
def test_decoded_metadata_encodes_to_the_same_text(shares):
    text = metadata_to_text({name: share * 2000 for name, share in shares.items()})

    again = metadata_to_text(text_to_metadata(text))

    assert again == text


@pytest.mark.parametrize("name", [n for n, q in FIELDS.items() if isinstance(q, Scale)])
@given(share=st.floats(0, 1))
def test_metadata_floats_come_back_within_a_bin(name, share):
    scale = FIELDS[name]
    value = scale.low + share * (scale.high - scale.low)

    (decoded,) = text_to_metadata(metadata_to_text({name: value})).values()

    assert 0 <= value - decoded + 1e-9 <= (scale.high - scale.low) / 49 + 2e-9


def test_both_ends_of_a_metadata_scale_are_fixed_points():
    for name, end in (("colorfulness", 150.0), ("colorfulness", 0.0), ("entropy", 10.0)):
        assert text_to_metadata(metadata_to_text({name: end})) == {name: end}


def test_the_original_decodes_with_one_bin_too_many():
    text = metadata_to_text({"colorfulness": 150.0})

    assert text_to_metadata(text, original=True) == {"colorfulness": 147.0}


def test_bad_metadata_says_what_is_wrong():
    with pytest.raises(ConfigError, match="Did you mean 'brightness'"):
        metadata_to_chunks({"brightnes": 1.0})
    with pytest.raises(FourMError, match="finite"):
        metadata_to_chunks({"brightness": math.nan})


@given(PEOPLE, st.integers(0, 1000))
def test_people_come_back_within_half_a_bin_in_any_order(people, seed):
    read = text_to_people(people_to_text(people, source=TorchSource.seeded(seed)))

    assert [p.pose for p in read] == [p.pose for p in people]
    for a, b in zip(read, people, strict=True):
        assert near(a.box, b.box, 1 / 999)
        assert near(a.rotation, b.rotation, 2 / 999)
        assert near(a.camera, b.camera, 20 / 999)
        assert near(a.shape, b.shape, 6 / 999)


def test_nobody_is_said_and_read():
    assert people_to_text([]) == "none"
    assert text_to_people("none") == ()


def test_half_a_person_keeps_the_whole_groups():
    text = people_to_text([Person(box=(0, 0, 1, 1), pose=(1,) * 8, shape=(0.0,) * 10)])

    (person,) = text_to_people(text.rsplit(" ", 3)[0])

    assert person.pose == (1,) * 8
    assert person.shape is None


def test_a_person_with_wrong_numbers_is_an_error():
    with pytest.raises(ShapeError, match="'camera' of a person has 3"):
        people_to_text([Person(camera=(1.0, 2.0))])
    with pytest.raises(FourMError, match="pose tokens"):
        people_to_text([Person(pose=(1024,) * 8)])


@given(PALETTES)
def test_palettes_come_back(palette):
    assert list(text_to_palette(palette_to_text(palette))) == palette


def test_a_cut_palette_keeps_its_whole_colours():
    assert text_to_palette("v1=3 v0=1 v0=2 v0=3 v0=4 v0=5") == ((1, 2, 3),)
    assert text_to_palette("v1=1 v0=1 v0=2 v0=3 v0=4 v0=5 v0=6") == ((1, 2, 3),)


def test_a_colour_out_of_range_is_an_error():
    with pytest.raises(FourMError, match=r"0\.\.255"):
        palette_to_text([(0, 0, 256)])


@given(POINTS)
def test_points_come_back(queries):
    assert list(text_to_points(points_to_text(queries))) == queries


@given(POINTS, st.integers(0, 1000))
def test_shuffled_segments_are_the_same_ones(queries, seed):
    read = text_to_points(points_to_text(queries, source=TorchSource.seeded(seed)))

    assert [(q.x, q.y, sorted(q.segments, key=repr)) for q in read] == [
        (q.x, q.y, sorted(q.segments, key=repr)) for q in queries
    ]


def test_a_cut_polygon_is_skipped():
    text = points_to_text([PointQuery(1, 2, (Segment((1, 2, 3, 4), (7,) * 16),))])

    assert text_to_points(text.rsplit(" ", 1)[0]) == (PointQuery(1, 2),)


def test_wrong_segments_are_errors():
    with pytest.raises(ShapeError, match="16 tokens"):
        points_to_text([PointQuery(0, 0, (Segment((0, 0, 1, 1), (1,)),))])
    with pytest.raises(FourMError, match="mask tokens"):
        points_to_text([PointQuery(0, 0, (Segment((0, 0, 1, 1), (1024,) * 16),))])
    with pytest.raises(FourMError, match="pixels"):
        points_to_text([PointQuery(0, -1)])


def test_grid_points_keep_away_from_the_borders():
    points = grid_points(3, 224)

    assert len(points) == 9
    assert points[0] == (56, 56)
    assert points[1] == (56, 112)


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "text"])
@given(text=BROKEN)
def test_any_generated_text_gives_a_partial_result(name, text):
    value = sequence_format(name).parse(text)

    # What was read is itself sound: it can be said and read again.
    if name == "boxes":
        assert all(0 <= x <= 1 for b in value for x in (b.xmin, b.ymin, b.xmax, b.ymax))
    if name == "metadata":
        assert all(math.isfinite(x) for x in value.values())
    if name == "color_palette":
        assert all(0 <= channel <= 255 for color in value for channel in color)
    if name == "sam_instances":
        assert all(len(s.tokens) == 16 for q in value for s in q.segments)
    if name == "human_poses":
        assert all(p.pose is None or max(p.pose) < 1024 for p in value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "a dog"),
        ("boxes", (Box(0.0, 0.0, 1.0, 1.0, "dog"),)),
        ("metadata", {"n_humans": 2}),
        ("human_poses", (Person(pose=(5,) * 8),)),
        ("color_palette", ((1, 2, 3),)),
        ("sam_instances", (PointQuery(3, 4),)),
    ],
)
def test_every_format_reads_what_it_says(name, value):
    form = sequence_format(name)

    assert form.parse(form.text(value, TorchSource.seeded(0))) == value


@pytest.fixture(scope="module")
def small():
    texts = ["human pose global camera shape none point polygon a dog"] * 3
    return train_text_tokenizer(texts, vocab_size=900, bins=100, num_sentinels=9, classes=["dog"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", "a dog"),
        ("boxes", (Box(0.0, 0.0, 1.0, 1.0, "dog"),)),
        ("metadata", {"n_humans": 2, "brightness": 255.0}),
        ("human_poses", (Person(box=(0.0, 0.0, 1.0, 1.0), pose=(5,) * 8, camera=(-1, 9, 19)),)),
        ("color_palette", ((1, 2, 3),)),
        ("sam_instances", (PointQuery(3, 4),)),
    ],
)
def test_formats_fit_a_small_vocabulary(small, name, value):
    form = sequence_format(name)

    ids = torch.tensor([i for chunk in form.encode(value, small) for i in chunk])
    back = form.decode(torch.cat([ids, torch.tensor([small.eos, small.pad])]), small)

    if name == "human_poses":
        (back,), (value,) = back, value
        assert (back.box, back.pose) == (value.box, value.pose)
        assert near(back.camera, value.camera, 20 / 99)
    else:
        assert back == value


def test_metadata_is_encoded_pair_by_pair(small):
    chunks = sequence_format("metadata").encode({"n_humans": 2, "brightness": 1.0}, small)

    assert [len(chunk) for chunk in chunks] == [2, 2]


def test_a_value_beyond_the_vocabulary_is_an_error(small):
    with pytest.raises(ConfigError, match="100 coordinates"):
        sequence_format("color_palette").encode(((1, 2, 100),), small)


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'boxes'"):
        sequence_format("boxess")
