from __future__ import annotations

from dataclasses import replace
from itertools import chain, takewhile

import pytest
import torch
from tiny import DEPTH, GLOBAL, MARKS, STYLES, hide_some, tiny_batch, tiny_model

from fourm_lite.batch import TokenBatch, Tokens
from fourm_lite.errors import ConfigError, FourMError, ShapeError, UnknownNameError
from fourm_lite.model.fourm import FourM
from fourm_lite.model.packing import take_first
from fourm_lite.sampling import target
from fourm_lite.sampling.plan import Plan, Target
from fourm_lite.sampling.sampler import Sampler, empty_sequence
from fourm_lite.sampling.schemes import SCHEMES, decode_positions
from fourm_lite.sampling.state import Job, Written
from fourm_lite.tokenization.words.spans import merge_spans

GRID_SCHEMES = ["maskgit", "roar"]


def sampler(style: str = "gelu", **changes) -> Sampler:
    return Sampler(tiny_model(style, **changes), marks=MARKS)


def plan(scheme: str, **options) -> Plan:
    if scheme == "autoregressive":
        return Plan.of(Target("caption", temperature=1.0, **options))
    target = Target("tok_depth@16", scheme=scheme, steps=4, temperature=1.0, **options)
    return Plan.of(target)


def visible(t: Tokens) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(t.value, t.inputs, strict=True)]


def same(a: TokenBatch, b: TokenBatch) -> bool:
    names = [n for n in a if a[n].value.dtype == torch.int64]
    return all(visible(a[n]) == visible(b[n]) for n in names)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_every_scheme_fills_its_target(scheme, style):
    given = tiny_batch(["rgb@16"], 3)

    out = sampler(style).run(given, plan(scheme))

    (target,) = set(out) - set(given)
    assert not out[target].targets.any()
    if scheme != "autoregressive":
        assert out[target].inputs.all()


@pytest.mark.parametrize("guidance", [1, 2, {"rgb@16": 1.5, "t5": 0.5}])
@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_an_item_does_not_depend_on_its_batch(scheme, guidance):
    given = tiny_batch(["rgb@16", "t5"], 4)
    guided = plan(scheme, guidance=guidance)
    seeds = [5, 6, 7, 8]
    s = sampler(scale=5.0)

    together = s.run(given, guided, seed=seeds)

    for place in range(4):
        alone = s.run(given.rows(slice(place, place + 1)), guided, seed=seeds[place])
        assert same(alone, together.rows(slice(place, place + 1)))


@pytest.mark.parametrize("other", ["t5", "target"])
@pytest.mark.parametrize("guidance", [1, 2])
@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_an_item_lacks_what_another_holds_as_if_alone(scheme, guidance, other):
    name = {"t5": "t5", "target": plan(scheme).targets[0].modality}[other]
    given = tiny_batch(["rgb@16", name], 2)
    lacking = given[name].inputs & torch.tensor([[True], [False]])
    batch = given.with_({name: replace(given[name], inputs=lacking)})
    s, guided = sampler(scale=5.0), plan(scheme, guidance=guidance)

    together = s.run(batch, guided, seed=3)
    alone = s.run(given.without(name).rows(slice(1, 2)), guided, seed=3)

    assert same(alone, together.rows(slice(1, 2)))
    if other == "target":
        assert same(given.rows(slice(1)), together.rows(slice(1)))


@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_an_item_does_not_depend_on_its_place(scheme):
    given = tiny_batch(["rgb@16"], 3)
    order = torch.tensor([2, 0, 1])

    straight = sampler().run(given, plan(scheme), seed=3)
    turned = sampler().run(given.rows(order), plan(scheme), seed=3)

    assert same(straight.rows(order), turned)


@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_other_seeds_give_other_results_and_the_same_seed_the_same(scheme):
    given = tiny_batch(["rgb@16"], 2)

    first, again, other = (sampler().run(given, plan(scheme), seed=s) for s in (1, 1, 2))

    assert same(first, again)
    assert not same(first, other)


def test_the_global_generator_is_not_touched():
    s, given = sampler(), tiny_batch(["rgb@16"])
    state = torch.get_rng_state()

    s.run(given, plan("roar"))
    s.run(given, plan("autoregressive"))

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scheme", GRID_SCHEMES)
def test_a_given_part_of_the_target_is_kept(scheme):
    given = tiny_batch(["rgb@16", "tok_depth@16"])
    part = hide_some(given["tok_depth@16"])

    out = sampler().run(given.with_({"tok_depth@16": part}), plan(scheme))

    assert torch.equal(out["tok_depth@16"].value[part.inputs], part.value[part.inputs])
    assert out["tok_depth@16"].inputs.all()


def test_ragged_targets_are_filled_like_single_ones():
    given = tiny_batch(["rgb@16", "tok_depth@16"], 3)
    ragged = torch.arange(16)[None] < torch.tensor([[2], [9], [16]])
    tokens = replace(given["tok_depth@16"], inputs=ragged, targets=~ragged)
    batch = given.with_({"tok_depth@16": tokens})
    s = sampler(scale=5.0)

    together = s.run(batch, plan("maskgit"), seed=4)

    for i in range(3):
        alone = s.run(batch.rows(slice(i, i + 1)), plan("maskgit"), seed=4)
        assert same(alone, together.rows(slice(i, i + 1)))


def test_temperature_zero_reveals_the_most_confident_first():
    model = planted_model()
    target = Target("tok_depth@16", scheme="maskgit", steps=4, order="linear", temperature=0)
    batch = tiny_batch(["rgb@16"], 1)

    first = next(iter(Sampler(model).iterate(batch, Plan.of(target))))

    sure = first.logits.log_softmax(-1).max(-1).values[0]
    expected = sure.topk(4).indices.sort().values
    assert first.positions[0].sort().values.tolist() == expected.tolist()
    assert first.confidence.max() < 1.0


def planted_model() -> FourM:
    """Predictions of clearly different confidence at every position."""
    return tiny_model(scale=8.0)


def test_temperature_zero_needs_no_seed():
    given = tiny_batch(["rgb@16"])
    greedy = Plan.of(Target("tok_depth@16", scheme="maskgit", steps=4, temperature=0))

    assert same(sampler().run(given, greedy, seed=1), sampler().run(given, greedy, seed=2))


@pytest.mark.parametrize("scheme", GRID_SCHEMES)
@pytest.mark.parametrize("steps", [1, 3, 5, 16])
def test_every_step_reveals_exactly_its_count(scheme, steps):
    target = Target("tok_depth@16", scheme=scheme, steps=steps, temperature=1.0)
    done = 0

    for result in sampler().iterate(tiny_batch(["rgb@16"]), Plan.of(target)):
        done += result.step.num_tokens
        assert result.batch["tok_depth@16"].inputs.sum(dim=1).tolist() == [done, done]

    assert done == 16


def test_chained_targets_see_each_other():
    given = tiny_batch(["rgb@16"])
    chain = Plan.of(Target("tok_global", temperature=0), Target("caption", temperature=0))
    s = sampler()

    out = s.run(given, chain)
    stepwise = s.run(s.run(given, Plan.of(Target("tok_global", temperature=0))),
                     Plan.of(Target("caption", temperature=0)))  # fmt: skip

    assert same(out, stepwise)


def test_growing_conditions_use_finished_targets():
    given = tiny_batch(["rgb@16"])
    targets = [Target("tok_global", temperature=0), Target("tok_depth@16", guidance=3)]

    steps = sampler().steps(given, Plan.of(*targets, grow_conditioning=True))

    assert set(steps[-1].conditions) == {"rgb@16", "tok_global"}


def test_a_gap_in_a_text_is_filled_in_its_place():
    s1, s2 = MARKS.sentinel(1), MARKS.sentinel(2)
    value = torch.tensor([[20, s1, 21, s1, 0, 0, s2]])
    inputs = torch.tensor([[True, True, True, False, False, False, False]])
    text = Tokens(value, inputs=inputs, targets=~inputs)
    batch = TokenBatch({"caption": text})

    out = sampler().run(batch, Plan.of(Target("caption", temperature=1.0)), seed=3)

    row = out["caption"].value[0][out["caption"].inputs[0]].tolist()
    assert row[0] == 20
    assert row[-1] == 21
    assert not set(row) & set(MARKS.sentinels)


def test_copies_join_what_each_of_them_says():
    given = tiny_batch(["rgb@16"], 2)
    single = Plan.of(Target("caption", temperature=1.0))
    dense = Plan.of(Target("caption", temperature=1.0, copies=3))

    one, three = sampler().run(given, single), sampler().run(given, dense)

    assert (three["caption"].inputs.sum(1) > one["caption"].inputs.sum(1)).all()


def test_joined_copies_have_one_end():
    given, dense = tiny_batch(["rgb@16"], 2), plan("autoregressive", copies=3)
    model = tiny_model()
    (first,) = Sampler(model, marks=MARKS).iterate(given, dense)
    marks = replace(MARKS, eos=int(first.ids[0, 1]))  # an end that the first copy says early

    (result,) = Sampler(model, marks=marks).iterate(given, dense)

    start, copies = [MARKS.sentinel(1)], result.ids.view(2, 3, -1).tolist()
    for i, row in enumerate(visible(result.batch["caption"])):
        said = [merge_spans(start, start + copy, MARKS.sentinels) for copy in copies[i]]
        cut = [takewhile(lambda t: t not in (marks.eos, -1), copy) for copy in said]
        assert row == [*chain.from_iterable(cut), marks.eos]


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("scheme", [*GRID_SCHEMES, "autoregressive"])
def test_a_target_that_is_given_costs_no_forward_pass(scheme, copies, monkeypatch):
    options = {"copies": copies} if scheme == "autoregressive" else {}
    request, calls = plan(scheme, **options), []
    given = tiny_batch(["rgb@16", request.targets[0].modality])
    s = sampler()
    for part in ("_through_blocks", "run_decoder"):
        monkeypatch.setattr(FourM, part, lambda *a, **k: calls.append(1))

    results = list(s.iterate(given, request))

    assert not calls
    assert same(results[-1].batch, given)
    assert len(results) == len(s.steps(given, request))


@pytest.mark.parametrize("scheme", GRID_SCHEMES)
def test_what_was_given_is_not_reported_as_written(scheme):
    given = tiny_batch(["rgb@16", "tok_depth@16"])
    wanted = torch.tensor([[False], [True]]).expand(2, 16)
    grid = replace(given["tok_depth@16"], inputs=~wanted, targets=wanted)

    results = list(sampler().iterate(given.with_({"tok_depth@16": grid}), plan(scheme)))

    written = sum((r.ids >= 0).sum(dim=1) for r in results)
    assert written.tolist() == [0, 16]


def test_rows_end_on_their_own():
    """A row that says its end token leaves; the others go on as if alone."""
    s = sampler(scale=5.0)
    given = tiny_batch(["rgb@16"], 6)
    text = empty_sequence(6, 12, MARKS)
    ends = text.value.clone()
    ends[:, -1] = torch.arange(12, 18)  # a likely word ends each row
    batch = given.with_({"caption": replace(text, value=ends)})
    seeds = list(range(6))

    result = list(s.iterate(batch, plan("autoregressive"), seed=seeds))[-1]
    lengths = (result.ids >= 0).sum(dim=1).tolist()

    assert len(set(lengths)) > 1
    for i in range(6):
        alone = s.run(batch.rows(slice(i, i + 1)), plan("autoregressive"), seed=seeds[i])
        assert same(alone, result.batch.rows(slice(i, i + 1)))


def test_the_encoder_does_not_run_again_when_its_input_did_not_change(monkeypatch):
    s, calls = sampler(), []
    run = FourM._through_blocks
    monkeypatch.setattr(FourM, "_through_blocks", lambda *a: (calls.append(1), run(*a))[1])
    given = tiny_batch(["rgb@16"])
    steps = s.steps(given, Plan.of(Target("caption", guidance=2.0, max_tokens=4)))

    s.run(given, steps)

    # with the image, and without it (the lone sentinel of the empty caption), in one go
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("batch", "target", "error", "message"),
    [
        (["rgb@16"], "tok_dept@16", UnknownNameError, "Did you mean 'tok_depth@16'"),
        (["rgb@16"], "rgb@16", FourMError, "never a target"),
        ([], "tok_depth@16", FourMError, "nothing is given"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(batch, target, error, message):
    with pytest.raises(error, match=message):
        sampler().iterate(tiny_batch(batch), Plan.of(target))


def test_a_wrong_shape_is_named():
    batch = TokenBatch({"rgb@16": Tokens.given(torch.zeros(1, 3, 8, 8), length=16)})

    with pytest.raises(ShapeError, match=r"'rgb@16' expects float32\[1, 3, 16, 16\]"):
        sampler().run(batch, Plan.of("tok_depth@16"))


def test_ids_of_another_vocabulary_are_named():
    batch = TokenBatch({"tok_depth@16": Tokens.given(torch.full((1, 16), 12), length=16)})

    with pytest.raises(FourMError, match=r"ids 0\.\.11"):
        sampler().run(batch, Plan.of("tok_global"))


def test_a_text_over_the_limit_is_refused():
    batch = TokenBatch({"caption": Tokens.given(torch.full((1, 30), 20), length=30)})

    with pytest.raises(FourMError, match="may hold 12 tokens, got 30"):
        sampler().run(batch, Plan.of("tok_global"))


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(FourMError, match="training mode"):
        Sampler(tiny_model().train())


def test_wanted_grids_match_their_entry():
    assert Tokens.wanted(DEPTH, 2).value.shape == (2, 16)
    assert Tokens.wanted(GLOBAL, 2).targets.all()


def test_a_scheme_is_a_function_and_a_row_of_defaults(monkeypatch):
    def from_the_left(job: Job) -> Written:
        targets = job.tokens.targets
        positions = take_first(targets, job.step.num_tokens)
        valid = targets.gather(1, positions)
        logits = job.guided(decode_positions(job.model, job.name, positions, valid, job.context))
        drawn = job.randomness.draw(logits, job.step, valid)
        tokens = job.tokens.reveal(positions, drawn.ids, valid)
        return Written(tokens, positions, drawn.ids, drawn.confidence, positions, logits)

    monkeypatch.setitem(SCHEMES, "from_the_left", from_the_left)
    monkeypatch.setitem(
        target._OF_SCHEME, "from_the_left", target.Choice("from_the_left", 4, "linear", 1.0)
    )

    steps = list(sampler().iterate(tiny_batch(["rgb@16"], 2), plan("from_the_left")))

    assert (
        torch.cat([s.positions for s in steps], dim=1).tolist() == [[*range(DEPTH.max_tokens)]] * 2
    )
    with pytest.raises(ConfigError, match="decoded by autoregressive, not by from_the_left"):
        sampler().run(tiny_batch(["rgb@16"], 2), Plan.of(Target("caption", scheme="from_the_left")))
