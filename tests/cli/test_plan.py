from __future__ import annotations

import json

from verbs import run


def test_a_shipped_plan_prints_as_a_table(capsys):
    code, out, _ = run(capsys, "plan", "caption2clip2rgb")

    assert code == 0
    assert "tok_clip@224" in out
    assert "guided by: all inputs and finished targets" in out


def test_without_a_name_the_shipped_plans_are_listed(capsys):
    code, out, _ = run(capsys, "plan")

    assert code == 0
    assert "rgb2all" in out.split()
    assert json.loads(run(capsys, "plan", "--json")[1]) == out.split()


def test_a_plan_with_an_unknown_key_is_one_message_that_names_file_and_key(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[targets]]\nmodality = "caption"\ntop_q = 0.5\n', encoding="utf-8")

    code, _, err = run(capsys, "plan", str(path))

    assert code == 2
    assert "mine.toml" in err
    assert "Did you mean 'top_p'" in err or "Did you mean 'top_k'" in err
