"""A server on this machine that speaks S3's protocol over HTTP."""

import pytest


@pytest.fixture(scope="session")
def s3():
    """Its address; the environment names it with made-up credentials."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        named = {"AWS_ENDPOINT_URL": address, "AWS_ENDPOINT": address, "AWS_ALLOW_HTTP": "true"}
        named |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
        named |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1"}
        for name, value in named.items():
            patch.setenv(name, value)
        yield address
    server.stop()
