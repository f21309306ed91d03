import pytest

from fourm_lite.search.calibration.answer_features import CaptionRelevance, Vocabulary, stem, stems

CAPTIONS = {
    "dogs": ["Two dogs run on grass.", "A brown dog is running after a white dog."],
    "dog": ["A dog sleeps on a sofa.", "a dog on the couch"],
    "boat": ["A man rows a boat on a lake.", "A rower"],
    "none": [],
}


@pytest.fixture
def judge():
    return CaptionRelevance.of(CAPTIONS)


def test_words_match_whatever_their_endings():
    assert stems("The DOGS are running!") == stems("the dog are run")
    assert stem("is") == "is"


def test_a_caption_matches_photos_that_show_the_same_and_not_others(judge):
    assert judge.match("dogs running", "dogs") == 1
    assert judge.match("dogs running", "boat") == 0
    assert 0 < judge.match("a dog runs", "dog") < 1
    assert judge.match("a dog runs", "none") is None


def test_rare_words_count_more_and_those_of_every_photo_nothing(judge):
    everywhere = CaptionRelevance.of(
        {name: [*texts, "a photo"] for name, texts in CAPTIONS.items() if texts}
    )

    assert judge.match("dog lake", "boat") > judge.match("dog lake", "dog")
    assert everywhere.match("photo", "boat") is None


def test_a_caption_is_no_witness_for_itself(judge):
    own = CAPTIONS["boat"][0]

    assert judge.match(own, "boat") < 0.2
    assert judge.match(own + " again", "boat") > 0.6


def test_known_are_the_words_that_a_gallery_of_its_size_has():
    photos = [frozenset({"dog"})] * 40 + [frozenset({"dog", "axolotl"})] + [frozenset({"cat"})] * 9

    small, large = (Vocabulary.of(photos, gallery=n) for n in (10, 1000))

    assert set(small.counts) == {"dog", "cat"}
    assert "axolotl" in large.counts
    assert small.known("a axolotl") < large.known("a axolotl") < 1
    assert large.known("axolotl", own=photos[40]) == 0
    assert small.known("dog cat") == 1
    assert small.known("...") == 1
    assert Vocabulary(**small.to_dict()) == small
