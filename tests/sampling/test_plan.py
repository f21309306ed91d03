from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fourm_lite.errors import ConfigError, UnknownNameError
from fourm_lite.modalities.catalog import MODALITIES
from fourm_lite.modalities.spec import Modality
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.schedule import Linear

ROOT = Path(__file__).resolve().parents[2]
PLANS = sorted((ROOT / "generation" / "plans").glob("*.toml"))
# what an input of the command line stands for when it names no resolution
RESOLVED = {"rgb": "rgb@224"}


def inputs_of(command):
    names = [name.split("=")[0] for name in re.findall(r"--input (\S+)", command)]
    return [RESOLVED.get(name, name) for name in names]


def test_the_shipped_plans_are_there():
    assert {p.stem for p in PLANS} >= {
        "rgb2all",
        "caption2clip2rgb",
        "image2dinov2_global",
        "caption2dinov2_global",
        "caption2imagebind_global",
        "superres448",
        "sam_dense",
    }


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_every_shipped_plan_opens_with_its_command_and_gives_steps(path):
    command = path.read_text(encoding="utf-8").splitlines()[0]
    plan = Plan.from_toml(path)

    steps = plan.steps(MODALITIES, inputs_of(command))

    assert command.startswith("# fourm-lite generate --model M --plan generation/plans/")
    assert path.relative_to(ROOT).as_posix() in command
    assert command.endswith("--out DIR")
    assert [s.target for s in steps if s.first] == [t.modality for t in plan]
    assert plan == Plan.from_toml(path.stem)


def test_the_steps_of_a_grid_reveal_it_whole_and_are_numbered_through():
    plan = Plan.of("tok_clip@224", "caption", Target("tok_rgb@448", scheme="roar", steps=7))

    steps = plan.steps()

    for name in ("tok_clip@224", "tok_rgb@448"):
        own = [s for s in steps if s.target == name]
        assert sum(s.num_tokens for s in own) == MODALITIES[name].max_tokens
        assert [s.first for s in own] == [True] + [False] * (len(own) - 1)
        assert [s.last for s in own] == [False] * (len(own) - 1) + [True]
    assert [s.index for s in steps] == list(range(len(steps)))


@pytest.mark.parametrize(
    ("name", "scheme", "num_steps", "temperature"),
    [
        ("tok_dinov2_global", "roar", 1, 0.0),
        ("tok_depth@224", "maskgit", 8, 1.0),
        ("tok_dinov2@224", "maskgit", 8, 1.0),
        ("caption", "autoregressive", 1, 0.3),
    ],
)
def test_what_a_target_leaves_open_follows_kind_and_size(name, scheme, num_steps, temperature):
    steps = Plan.of(name).steps()

    assert len(steps) == num_steps
    assert {s.scheme for s in steps} == {scheme}
    assert {s.temperature for s in steps} == {temperature}
    assert (steps[0].num_tokens is None) == (scheme == "autoregressive")


@pytest.mark.parametrize(
    ("target", "amounts"),
    [
        ("caption", "words"),
        ("det", "words"),
        ("color_palette", "median"),
        (Target("metadata"), "median"),
        (Target("metadata", amounts="words"), "words"),
        (Target("det", amounts="median"), "median"),
    ],
)
def test_amounts_are_taken_at_their_median_unless_the_target_says_otherwise(target, amounts):
    (step,) = Plan.of(target).steps()

    assert step.amounts == amounts


def test_in_the_original_amounts_are_words():
    (step,) = Plan.of("metadata").steps(original=True)

    assert step.amounts == "words"


def test_a_grid_has_no_amounts():
    with pytest.raises(ConfigError, match="amounts are for sequences"):
        Plan.of(Target("tok_depth@224", amounts="median")).steps()


def test_a_modality_of_the_users_own_needs_no_entry_anywhere_else():
    mine = Modality(name="tok_mine", kind="grid", grid=(3, 4), max_tokens=12, vocab_size=9)

    steps = Plan.of(Target("tok_mine", steps=5)).steps({"tok_mine": mine})

    assert sum(s.num_tokens for s in steps) == 12


def test_temperatures_may_be_numbers_texts_or_rules():
    plans = [Plan.of(Target("tok_clip@224", temperature=t)) for t in ("linear@2", Linear(2.0))]

    first, second = (plan.steps() for plan in plans)

    assert first == second
    assert first[0].temperature == 2.0 > first[-1].temperature


def test_an_integer_guidance_is_a_number_like_any_other():
    plan = Plan.of(Target("tok_clip@224", guidance=3))

    step = plan.steps(given=["caption"])[0]

    assert step.guidance == 3.0
    assert step.conditions == ("caption",)


def test_growing_conditions_take_in_every_finished_target():
    guided = [Target(n, guidance=2) for n in ("tok_clip@224", "caption", "tok_rgb@224")]
    plan = Plan.of(*guided, grow_conditioning=True)

    conditions = {s.target: s.conditions for s in plan.steps(given=["rgb@224"])}

    assert conditions["tok_clip@224"] == ("rgb@224",)
    assert conditions["caption"] == ("rgb@224", "tok_clip@224")
    assert conditions["tok_rgb@224"] == ("rgb@224", "tok_clip@224", "caption")


def test_in_the_original_a_finished_text_does_not_become_a_condition():
    guided = [Target(n, guidance=2.0) for n in ("caption", "tok_clip@224")]
    plan = Plan.of(*guided, grow_conditioning=True)

    steps = plan.steps(given=["rgb@224"], original=True)

    assert steps[-1].conditions == ("rgb@224",)


def test_a_weight_per_condition_names_the_conditions_and_grows_by_weights_of_one():
    weights = {"caption": 2, "rgb@224": 1.5}
    plan = Plan.of(
        Target("tok_clip@224", guidance=weights),
        Target("tok_semseg@224", guidance=weights),
        grow_conditioning=True,
    )

    steps = plan.steps(given=["caption", "rgb@224", "det"])

    assert steps[0].guidance == {"caption": 2.0, "rgb@224": 1.5}
    assert steps[-1].guidance == {"caption": 2.0, "rgb@224": 1.5, "tok_clip@224": 1.0}
    assert steps[-1].conditions == ("caption", "rgb@224", "tok_clip@224")


def test_a_text_that_is_completed_is_no_condition_of_itself():
    plan = Plan.of(Target("caption", guidance=2.0))

    assert plan.steps(given=["rgb@224", "caption"])[0].conditions == ("rgb@224",)


def test_guidance_without_any_input_is_no_guidance():
    assert Plan.of(Target("tok_clip@224", guidance=2.0)).steps(given=[])[0].guidance == 1.0


def test_a_plan_may_name_the_conditions_that_it_guides_by():
    plan = Plan.of(Target("tok_clip@224", guidance=2.0), conditions=["caption"])

    assert plan.steps(given=["caption", "rgb@224"])[0].conditions == ("caption",)
    assert plan.steps()[0].conditions == ("caption",)


@pytest.mark.parametrize(
    ("plan", "given", "message"),
    [
        (Plan.of(Target("tok_clip@224", guidance=2.0)), None, "pass given="),
        (
            Plan.of(Target("tok_clip@224", guidance={"captoin": 2.0})),
            ["caption"],
            "Did you mean 'caption'",
        ),
        (
            Plan.of(Target("tok_clip@224", guidance=2.0), conditions=["det"]),
            ["caption"],
            "neither given nor generated before it",
        ),
        (Plan.of("rgb@224"), None, "never a target"),
        (Plan.of(Target("caption", scheme="roar")), None, "decoded by autoregressive"),
        (Plan.of(Target("tok_clip@224", scheme="autoregressive")), None, "maskgit or roar"),
        (Plan.of(Target("caption", steps=3)), None, "leave out steps"),
        (Plan.of(Target("caption", max_tokens=1000)), None, "at most 256 tokens"),
        (Plan.of(Target("tok_clip@224", max_tokens=10)), None, "for sequences"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_says_why(plan, given, message):
    with pytest.raises(ConfigError, match=message):
        plan.steps(given=given)


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'tok_depth@224'"):
        Plan.of("tok_dpeth@224").steps()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"targets": [{"modality": "caption", "temprature": 1.0}]}, "Did you mean 'temperature'"),
        ({"targets": [{"modality": "caption"}], "grow": True}, "no key 'grow'"),
        ({}, "needs the key 'targets'"),
        ({"targets": []}, "at least one target"),
        ({"targets": [{"modality": "caption"}, {"modality": "caption"}]}, "generates a modality"),
        ({"targets": [{"modality": "caption", "top_k": 50.0}]}, "give an integer"),
        ({"targets": [{"modality": "caption", "top_p": 2}]}, "between 0 and 1"),
        ({"targets": [{"modality": "caption", "temperature": "warm"}]}, "temperature is a number"),
        ({"targets": [{"modality": "caption", "scheme": "maskgti"}]}, "one of 'maskgit', 'roar'"),
        ({"targets": [{"modality": "caption", "steps": 0}]}, "must be 1 or more"),
        ({"targets": [{"modality": "caption", "guidance": {}}]}, "empty table"),
        ({"targets": [{"modality": "caption", "guidance": "big"}]}, "guidance"),
    ],
)
def test_a_recipe_that_means_nothing_says_where(data, message):
    with pytest.raises(ConfigError, match=message):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": "8"},
        {"steps": True},
        {"copies": 1.5},
        {"guidance": float("nan")},
        {"guidance": True},
        {"guidance": "3"},
        {"modality": ""},
        {"amounts": "mean"},
    ],
)
def test_a_target_of_nonsense_is_refused_at_once(fields):
    with pytest.raises(ConfigError):
        Target(**{"modality": "tok_clip@224", **fields})


def test_a_table_of_plain_values_gives_the_plan_that_python_gives():
    data = {
        "conditions": ["caption"],
        "targets": [
            {"modality": "tok_clip@224", "guidance": 2, "top_k": 50, "temperature": "linear"}
        ],
    }

    plan = Plan.from_dict(data)

    assert plan == Plan.of(
        Target("tok_clip@224", guidance=2.0, top_k=50, temperature="linear"),
        conditions=["caption"],
    )
    assert isinstance(plan.targets[0].top_k, int)


def test_a_missing_plan_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"Did you mean 'rgb2all'.*Shipped plans: caption2"):
        Plan.from_toml("rgb2al")


def test_a_plan_prints_as_a_table_with_a_row_a_target():
    plan = Plan.of("tok_clip@224", Target("caption", top_k=5), "tok_of_tomorrow")

    lines = str(plan).splitlines()

    assert lines[2].split()[:3] == ["1", "tok_clip@224", "maskgit"]
    assert "7 21 32 38 38 32 21 7" in lines[2]
    assert lines[3].endswith("k=5")
    assert "not registered" in lines[4]
    assert lines[-1] == "guided by: all inputs"


def test_plans_are_read_without_importing_torch():
    code = "import sys, fourm_lite.sampling.plan; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
