#!/usr/bin/env bash
# pytrec_eval and ranx: one run with equal scores gets three different figures.
#
# Behaviour: among hits of one score trec_eval takes the *larger document id* first, whatever order the run lists, and
#   ranx keeps the order in which the run lists them. Neither says that there were ties.
# Why a guess is wrong: both are used as "the" trec_eval measures and agree to the last digit on scores without ties;
#   a run that lists the relevant items first (as one built from the relevance judgements does) gets 1.0 in ranx.
# Who meets it: whoever measures retrieval with few distinct scores: int8 or binary codes, token overlap, class labels,
#   a collapsed model that gives every item one vector (it can look perfect or useless).
# Instead: count ties as their expectation, or break them by a seeded shuffle and say so.
#
# Seen with pytrec_eval-terrier 0.5.11, ranx 0.3.21, numpy 2.4.6:
#   five hits of one score, d3 is right: pytrec_eval MRR 0.5, the run listed either way
#   ranx MRR 0.25 (listed d0 d1 d2 d3 d4), 1.0 (listed d3 d0 d1 d2 d4)
#   without ties: pytrec_eval 0.25, ranx 0.25
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet pytrec_eval-terrier==0.5.11 ranx==0.3.21 numpy==2.4.6
"$work/env/bin/python" -W ignore - <<'PY'
import pytrec_eval
from ranx import Qrels, Run, evaluate

right = {"q": {"d3": 1}}


def trec(scores):
    measured = pytrec_eval.RelevanceEvaluator(right, {"recip_rank"}).evaluate({"q": scores})
    return measured["q"]["recip_rank"]


def ranx(scores):
    return float(evaluate(Qrels(right), Run({"q": scores}), "mrr"))


plain = {f"d{i}": 1.0 for i in range(5)}
first = {f"d{i}": 1.0 for i in (3, 0, 1, 2, 4)}
apart = {f"d{i}": 1.0 - i / 10 for i in range(5)}
assert trec(plain) == trec(first) == 0.5, "trec_eval breaks ties otherwise now"
print(f"five hits of one score, d3 is right: pytrec_eval MRR {trec(plain)}, the run listed either way")
print(f"ranx MRR {ranx(plain)} (listed d0 d1 d2 d3 d4), {ranx(first)} (listed d3 d0 d1 d2 d4)")
assert (ranx(plain), ranx(first)) == (0.25, 1.0), "ranx breaks ties otherwise now"
print(f"without ties: pytrec_eval {trec(apart)}, ranx {ranx(apart)}")
assert trec(apart) == ranx(apart) == 0.25
PY
