"""Shards of drawn photos, and whether two indexes hold the same rows and nothing besides."""

import io
import json
import tarfile

import numpy as np
from tiny_pipeline import photo

from fourm_lite.data.shards import token_path, write_shard
from fourm_lite.reading.remote import place


def shard(path, numbers, said=None):
    """A tar of drawn photos with captions, the last of them broken, and with what else is said."""
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            stream = io.BytesIO()
            photo(i).save(stream, "PNG")
            data = stream.getvalue()[:60] if i == numbers[-1] else stream.getvalue()
            files = {"png": data, "txt": b"photo %d" % i}
            files |= {"json": json.dumps(said(i)).encode()} if said else {}
            for ending, content in files.items():
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_tokens(root, folder, ids, tokens, *, shard_size=1024):
    """Writes one modality's tokens int[N, crops, ...] (or the crop settings) as tar shards."""
    for start in range(0, len(ids), shard_size):
        part = slice(start, start + shard_size)
        write_shard(token_path(root, folder, start // shard_size), ids[part], tokens[part])


def same(one, other):
    """Whether two indexes hold the same rows in the same order."""
    first, second = (index.rows.newest().handle.to_table() for index in (one, other))
    assert first["id"].to_pylist() == second["id"].to_pylist()
    assert sorted(first.column_names) == sorted(second.column_names)
    vectors = [np.stack(t["vector"].to_pylist()) for t in (first, second)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6
    for name in set(first.column_names) - {"vector"}:
        assert first[name].to_pylist() == second[name].to_pylist(), name


def orphans(index):
    """Files of rows that no version names."""
    table = index.rows.newest().handle
    named = set()
    for version in table.versions():
        for fragment in table.checkout_version(version["version"]).get_fragments():
            named |= {file.path for file in fragment.data_files()}
    return {file.name for file in place(f"{index.rows.place}/data").iterdir()} - named


def workers_of(process):
    """The processes below one that embed, by Ray's name for them."""
    import psutil

    try:
        below = psutil.Process(process).children(recursive=True)
        return [child.pid for child in below if "_Actor" in " ".join(child.cmdline())]
    except psutil.Error:  # one ended meanwhile
        return []
