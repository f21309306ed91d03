"""`fourm-lite spread`: learn from photos' vectors how a model's queries are spread."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fourm_lite.cli.output import print_facts, print_json, require_model_folder
from fourm_lite.cli.words import Argument, Option


def spread(
    labels: Annotated[Path, Argument("A folder of `fourm-lite pseudolabel`.")],
    name: Annotated[str, Option("--label", help="The vectors in it, such as mobilenet_global.")],
    model: Annotated[Path, Option("--model", help="Folder of the model; the file goes there.")],
    target: Annotated[
        str | None, Option("--target", help="The embedding they are of; the model's first.")
    ] = None,
    power: Annotated[
        float, Option("--power", help="0 leaves queries as they are, 0.5 whitens.", min=0, max=1)
    ] = 0.3,
    axes: Annotated[int, Option("--axes", help="Directions that are kept.", min=1)] = 64,
    as_json: Annotated[bool, Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Learn what photos vary in most, so that queries hold less of it.

    A query that a model predicts lies mostly in the directions that photos vary in most, and finds
    what is common. Searches with this model divide those by their variance to a power, which is
    chosen by `fourm-lite evaluate retrieval --spread`. Galleries stay as they are.

    Raises:
        FourMError: the labels or the model cannot be read
    """
    from fourm_lite.data.label_rows import read_vectors
    from fourm_lite.pipeline.pipeline import FourMPipeline
    from fourm_lite.search.spaces import tokenizer_centre
    from fourm_lite.search.whitening import fit_spread

    require_model_folder(model)
    pipe = FourMPipeline.from_pretrained(model)
    entry = pipe.embedding_target(target)
    ids, values = read_vectors(labels, name)
    vectors = tokenizer_centre(pipe.tokenizers.vq(entry))(values[:, 0])
    path = fit_spread(vectors, entry.name, axes=axes, power=power).save(model)
    facts = {"file": path, "photos": len(ids), "target": entry.name, "axes": axes, "power": power}
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)
