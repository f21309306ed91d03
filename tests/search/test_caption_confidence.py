"""How sure answers are, on a gallery whose words and photos are drawn: a space of bags of words."""

import dataclasses
import json
import zlib
from types import MappingProxyType

import numpy as np
import pytest

from fourm_lite.errors import ConfigError
from fourm_lite.search.calibration.answer_features import (
    CaptionRelevance,
    Question,
    Vocabulary,
    stems,
)
from fourm_lite.search.calibration.calibrate import calibrate_answers, calibrate_by_model
from fourm_lite.search.calibration.captions import (
    Captioned,
    Transferable,
    beginning,
    foreign_features,
    foreign_texts,
    lessons_of,
    median_and_deviation,
)
from fourm_lite.search.calibration.probability import MEANINGS, RELEVANCE, sureness
from fourm_lite.search.engine import Search
from fourm_lite.search.index.index import Index
from fourm_lite.search.index.manifest import write_manifest
from fourm_lite.search.query import Query
from fourm_lite.unit import unit

THINGS = [f"thing{chr(97 + i)}{chr(97 + j)}" for i in range(6) for j in range(5)]
DOING = [f"does{chr(97 + i)}" for i in range(8)]
PLACES = [f"place{chr(97 + i)}" for i in range(8)]


def vector(word):
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=48)


class Words:
    """A text's vector is the mean of its words'; a photo's is that of what it shows, with noise."""

    name, width, codebook_size = "words", 48, None
    joins, predictor, decoder, fitted = False, None, None, None

    def query_texts(self, texts):
        return tuple({"caption": text} for text in texts), 0

    identity = fingerprints = MappingProxyType({"network": "words"})

    def encode_query(self, items, *, batch_size=32, progress=None):
        rows = [np.sum([vector(w) for w in stems(item["caption"])], axis=0) for item in items]
        return unit(np.array(rows, np.float32))


def gallery(place, seed, photos=150, noise=1.5):
    rng = np.random.default_rng(seed)
    texts, vectors = {}, []
    for number in range(photos):
        shown = [rng.choice(some) for some in (THINGS, DOING, PLACES)]
        texts[f"p{number}"] = ["a {} {} at {}".format(*shown), "{} {} {}".format(*shown[::-1])]
        row = np.sum([vector(stem) for stem in stems(" ".join(shown))], axis=0)
        vectors.append(row + noise * rng.normal(size=48))
    index = Index.create(place, space="words", width=48)
    index.add(list(texts), unit(np.array(vectors, np.float32)))
    judge = CaptionRelevance.of(texts)
    words = Vocabulary.of([judge.words_of(row) for row in texts], gallery=photos)
    asked = [
        (Question(text, {"caption": text}, judge.words_of(row)), row)
        for row, some in texts.items()
        for text in some
    ]
    return index, Captioned([q for q, _ in asked], [row for _, row in asked], judge, words)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    index, asked = gallery(tmp_path_factory.mktemp("taught") / "idx", 0)
    done = calibrate_answers(index, Words(), asked)
    return index, asked, done


def flagged(index, texts):
    search = Search(index, Words())
    return np.mean([not search(caption=text, k=1).good_match for text in texts])


def test_what_is_there_is_a_good_match_and_what_is_not_is_none(taught):
    index, asked, done = taught
    report = done.report

    absent = ["a wombat reads under water", "quantum physics", "my old passport", "mars"]
    assert flagged(index, [q.text for q in asked.questions[::7]]) <= 0.1
    assert flagged(index, absent) >= 0.7
    assert report.flagged_fitting <= 0.1
    assert report.flagged_foreign >= 0.7
    assert report.auroc > 0.9
    assert 0 <= report.error < 0.2
    assert index.manifest.calibration["meaning"] == RELEVANCE


def test_an_answer_is_right_by_what_it_shows_not_by_which_photo_it_is(taught):
    _, asked, _ = taught
    twin = next(q for q in asked.questions if len(stems(q.text)) > 3)
    same = dataclasses.replace(asked, questions=[twin], owner=["nowhere"])
    hits = Search(taught[0], Words())(caption=twin.text, k=10)

    matches = [asked.judge.match(twin.text, row) for row in hits.ids]
    others = hits.take([at for at, match in enumerate(matches) if match == 0])

    assert same.are_right([hits]) == [True]
    assert same.are_right([others]) == [False]


def test_only_words_alone_get_a_probability_as_only_they_were_learnt_from(taught):
    search, words = Search(taught[0], Words()), {"caption": "a thingaa at placea"}

    plain = search(words)
    without = search(Query.of(words, without={"caption": "doesa"}))
    two = search(Query.of({"caption": ["thingaa", "placea"]}))

    assert plain.p_right is not None
    assert plain.p_means == RELEVANCE
    assert (without.p_right, two.p_right) == (None, None)


def test_a_calibration_moves_to_a_gallery_without_captions(taught, tmp_path):
    index, asked, _ = taught
    lessons, foreign = lessons_of(index, Words(), asked, foreign_texts())
    kept = Transferable(
        lessons.fit(np.ones(len(lessons.right), bool)),
        asked.vocabulary,
        median_and_deviation(foreign),
    )
    other, others = gallery(tmp_path / "other", 1, photos=600, noise=2.5)

    stored = Transferable.of(json.loads(json.dumps(kept.to_dict())))
    moved = stored.moved_to(median_and_deviation(foreign_features(other, Words(), foreign_texts())))

    assert stored == kept
    assert kept.moved_to(kept.foreign) == kept.calibration
    extra = {"vocabulary": kept.vocabulary.to_dict()}
    other.set_calibration(moved, extra=extra)
    assert flagged(other, [q.text for q in others.questions[::40]]) <= 0.15
    assert flagged(other, ["a wombat reads under water", "quantum physics", "my passport"]) > 0.6


def test_without_captions_and_without_a_model_of_its_own_it_says_what_to_do(taught):
    with pytest.raises(ConfigError, match="--data FOLDER"):
        calibrate_by_model(taught[0], Words())


def test_beginnings_are_words_as_people_ask():
    caption = "A man in a red coat, who is very old, sings."

    found = {beginning(caption, number) for number in range(10)}

    assert found == {"a man", "a man in a red"}


def test_foreign_texts_that_the_captions_have_are_not_foreign(taught):
    index, asked, _ = taught

    with pytest.raises(ConfigError, match="give other texts"):
        lessons_of(index, Words(), asked, [asked.questions[0].text])


def test_calibrations_of_before_still_tell_theirs_and_say_what_it_means(taught, tmp_path, caplog):
    index, asked = gallery(tmp_path / "old", 0, photos=40)
    old = {"method": "logistic", "names": ["score", "margin"], "weights": [1.0, 0.5], "bias": 0.1}
    old |= {"centres": [0.4, 0.1], "scales": [0.1, 0.1], "threshold": 0.5, "queries": 9}
    write_manifest(index.path, dataclasses.replace(index.manifest, calibration=old))

    found = Search(index, Words())(caption=asked.questions[0].text)

    assert 0 < found.p_right < 1
    assert MEANINGS[""] in sureness(found)
    assert found.p_means == ""
