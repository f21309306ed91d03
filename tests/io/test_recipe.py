from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from fourm_lite.errors import ConfigError
from fourm_lite.io.recipe import from_dict, from_toml


@dataclass(frozen=True)
class Optim:
    lr: float
    schedule: Literal["cosine", "linear"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Recipe:
    inputs: tuple[str, ...]
    optim: Optim
    steps: int = 10
    flip: bool = False
    seed: int | None = None
    guidance: float | Mapping[str, float] = 1.0
    folder: Path | None = None
    stages: tuple[Optim, ...] = ()
    sizes: list[int] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps should be positive, got {self.steps}")
        if self.seed == 13:
            raise ValueError("unlucky")


GOOD = {"inputs": ["rgb@224"], "optim": {"lr": 1}}


def test_defaults_fill_what_is_left_out():
    assert from_dict(Recipe, GOOD) == Recipe(("rgb@224",), Optim(1.0))


def test_a_full_recipe_is_read_from_toml(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'inputs = ["rgb@224", "caption"]\nsteps = 5\nflip = true\nseed = 0\nfolder = "data"\n'
        "sizes = [1, 2]\n[guidance]\ncaption = 2\n[optim]\nlr = 1e-4\nbetas = [0.8, 1]\n"
        '[[stages]]\nlr = 1.0\nschedule = "linear"\n[extra]\nanything = [{a = 1}]\n'
    )

    assert from_toml(Recipe, path) == Recipe(
        inputs=("rgb@224", "caption"),
        optim=Optim(1e-4, betas=(0.8, 1.0)),
        steps=5,
        flip=True,
        seed=0,
        guidance={"caption": 2.0},
        folder=Path("data"),
        stages=(Optim(1.0, "linear"),),
        sizes=[1, 2],
        extra={"anything": [{"a": 1}]},
    )


BAD = {
    "an unknown key": ({"stpes": 3}, "no key 'stpes'. Did you mean 'steps'?"),
    "an unknown key, inside": ({"optim": {"lr": 1, "beats": 2}}, "'optim.beats'. Did you mean"),
    "an unknown key, in a list": ({"stages": [{"lr": 1}, {"lr": 1, "x": 2}]}, r"stages\[1\]\.x"),
    "a missing key, inside": ({"optim": {}}, "'optim.lr', which is missing"),
    "text for an integer": ({"steps": "3"}, "'steps' should be an integer, got '3' (str)"),
    "a float for an integer": ({"steps": 3.5}, "'steps' should be an integer"),
    "true for an integer": ({"steps": True}, "'steps' should be an integer"),
    "true for a float": ({"optim": {"lr": True}}, "'optim.lr' should be a number"),
    "an integer for a boolean": ({"flip": 1}, "'flip' should be true or false"),
    "nan": ({"optim": {"lr": float("nan")}}, "finite"),
    "an integer beyond floats": ({"optim": {"lr": 10**400}}, "finite"),
    "a word that is no choice": (
        {"optim": {"lr": 1, "schedule": "cosin"}}, "one of 'cosine', 'linear'"),
    "text for a list": ({"inputs": "rgb"}, "'inputs' should be a list"),
    "a wrong item": ({"inputs": ["rgb", 3]}, r"'inputs\[1\]' should be text"),
    "three of two": ({"optim": {"lr": 1, "betas": [1, 2, 3]}}, "should hold 2 values, got 3"),
    "a number for a table": ({"optim": 3}, "optim should be a table"),
    "neither of two": ({"guidance": "x"}, "a number or a table"),
    "nothing or an integer": ({"seed": "x"}, "'seed' should be an integer"),
    "what the class refuses": ({"steps": 0}, "steps should be positive"),
    "what the class refuses otherwise": ({"seed": 13}, "unlucky"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_wrong_recipe_is_told_with_the_place(changes, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Recipe, {**GOOD, **changes})

    assert message.replace("\\", "") in str(caught.value)


def test_a_recipe_that_is_no_table_is_told():
    with pytest.raises(ConfigError, match="should be a table"):
        from_dict(Recipe, ["inputs"])


@pytest.mark.parametrize(
    "text",
    [b"inputs = [", b"\xff", b"a = " + b"[" * 5000, b"steps = 1\nsteps = 2", b"[optim]\nlr = 1"],
    ids=["truncated", "not UTF-8", "deep", "twice", "missing key"],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_bytes(text)

    with pytest.raises(ConfigError, match=r"recipe\.toml"):
        from_toml(Recipe, path)


def test_a_missing_file_is_told(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match="cannot read the recipe"):
            from_toml(Recipe, path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbfinputs = []\n[optim]\nlr = 1")

    assert from_toml(Recipe, path).inputs == ()


def test_a_recipe_says_only_what_differs_from_its_base(tmp_path):
    (tmp_path / "all.toml").write_text(
        'inputs = ["a", "b"]\nsteps = 5\n[optim]\nlr = 1\nschedule = "linear"\n[guidance]\na = 1.0'
    )
    (tmp_path / "more.toml").write_text('base = "all.toml"\nsteps = 7\n[guidance]\nb = 2.0')
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.toml").write_text(
        'base = "../more.toml"\ninputs = ["c"]\n[optim]\nlr = 3'
    )

    assert from_toml(Recipe, tmp_path / "deep" / "own.toml") == Recipe(
        inputs=("c",), optim=Optim(3.0, "linear"), steps=7, guidance={"a": 1.0, "b": 2.0}
    )


def test_bases_that_lead_nowhere_are_told(tmp_path):
    wrong = {"itself": '"me.toml"', "none": '"none.toml"', "number": "3", "name": '"a\\u0000b"'}
    for what, base in wrong.items():
        (tmp_path / "me.toml").write_text(f"base = {base}\ninputs = []\n[optim]\nlr = 1")

        with pytest.raises(ConfigError, match=r"come back|cannot read|should be a path") as caught:
            from_toml(Recipe, tmp_path / "me.toml")
        assert str(tmp_path) in str(caught.value), what
