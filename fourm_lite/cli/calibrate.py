"""`fourm-lite calibrate`: fit what is kept beside a model about its searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import print_facts, print_json, require_model_folder
from fourm_lite.cli.progress_counts import count_progress
from fourm_lite.cli.search_options import BatchSize, Data, Device, Json, Target
from fourm_lite.cli.words import Option


def calibrate(
    model: Annotated[Path, Option("--model", "-m", help="Folder of a 4M model.")],
    data: Data,
    split: Annotated[str, Option("--split", help="Photos it was not trained on.")] = "val",
    rerank: Annotated[
        int, Option("--rerank", help="How many of the first hits are reranked.", min=2)
    ] = 100,
    target: Target = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Fit how a model's hits are reranked and how sure its answers are.

    Both are learnt from photos with captions that the model was not trained on, and kept beside it
    as search.json: searches and evaluations read them from there. An index may have its own
    (fourm-lite index calibrate).

    Raises:
        FourMError: the model or the data cannot be used
    """
    from fourm_lite.evaluate.fit_search import fit_model, told
    from fourm_lite.search.spaces import ModelSpace, open_space

    require_model_folder(model)
    space = open_space(model, target=target, device=device)
    assert isinstance(space, ModelSpace)
    with count_progress("photos") as shown:
        learnt = fit_model(
            space, data, split, depth=rerank, batch_size=batch_size, progress=shown.tell
        )
    facts = {"file": learnt.save(model), **told(learnt)}
    print_json(facts) if as_json else print_facts(facts)
