"""What every test stands on: the shared data, a seed, one thread, and no network."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# Before any test imports huggingface_hub: it reads these once. Subprocesses inherit them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# What a test allows an index to open is nothing that the user said
os.environ["FOURM_LITE_CACHE"] = tempfile.mkdtemp(prefix="fourm-lite-tests-")
atexit.register(shutil.rmtree, os.environ["FOURM_LITE_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with data and golden cases that lies beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared folder at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden cases: ``FOURM_GOLDEN``, or the shared one."""
    named = os.environ.get("FOURM_GOLDEN")
    folder = Path(named).absolute() if named else SHARED / "golden" / "public"
    if named is None and not folder.is_dir():
        pytest.skip(f"no golden cases at {folder}; FOURM_GOLDEN names another folder")
    return folder


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory) -> Path:
    """A hub cache with published models and tokenizers, tiny and random; read only."""
    import tiny_hub

    return tiny_hub.build_cache(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def text_cache(shared, tmp_path_factory) -> Path:
    """Where the original's text tokenizer lies once it is fetched."""
    from fourm_lite.io.hub import ORIGINAL_TEXT_TOKENIZER

    folder = tmp_path_factory.mktemp("text")
    name = ORIGINAL_TEXT_TOKENIZER.name
    (folder / name).symlink_to(shared / "golden" / name)
    return folder


@pytest.fixture
def published(hub_cache, text_cache, monkeypatch) -> Path:
    """Everything published is in the caches of this test; returns the hub's.

    Diffusion decoders take two steps where nobody says how many: their pictures are noise anyway.
    """
    from fourm_lite.tokenization.vq.denoising import Denoising

    monkeypatch.setitem(Denoising.__init__.__kwdefaults__, "steps", 2)
    monkeypatch.setenv("FOURM_LITE_CACHE", str(text_cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    return hub_cache


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors: a second thread costs more than it brings, and would change sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def is_local(host: object) -> bool:
    """True for an address or name of this machine."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(name)).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Fails a test that reaches for another machine.

    ``pytest.fail`` raises no Exception, so no ``except`` of the code under test can hide it.
    """

    def guarded(method):
        def connect(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
                pytest.fail(f"a test tried to reach {address}; tests use no network")
            return method(self, address)

        return connect

    def getaddrinfo(host, *args, **kwargs):
        if not is_local(host):
            pytest.fail(f"a test tried to look up {host}; tests use no network")
        return lookup(host, *args, **kwargs)

    lookup = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield
