"""Scripts that import a module under the name that it had in 0.1 go on."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from fourm_lite.former_paths import FORMER


@pytest.mark.parametrize("now", sorted(set(FORMER.values())))
def test_the_table_leads_to_modules_of_today(now):
    assert find_spec(f"fourm_lite.{now}") is not None


@pytest.mark.parametrize("name", sorted(FORMER))
def test_no_file_stands_under_a_former_name(name):
    sys.modules.pop(f"fourm_lite.{name}", None)
    with pytest.warns(DeprecationWarning, match="is fourm_lite"):
        module = import_module(f"fourm_lite.{name}")

    assert module is import_module(f"fourm_lite.{FORMER[name]}")
    assert module.__name__ == f"fourm_lite.{FORMER[name]}"


def test_from_imports_and_imports_of_packages_go_on():
    code = (
        "import fourm_lite.retrieval.items, fourm_lite.training.labelled\n"
        "from fourm_lite.retrieval import sources\n"
        "from fourm_lite.data.sources import Record, read_caption_list\n"
        "from fourm_lite.photos.item import Item\n"
        "assert fourm_lite.retrieval.items.Item is Item\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_a_name_that_never_was_is_still_an_error():
    with pytest.raises(ModuleNotFoundError, match="never_was"):
        import_module("fourm_lite.never_was")
