"""The reader of photos under the name by which scripts import it; see `photos.sources`."""

from fourm_lite.photos.sources import open_sources, read_uri

__all__ = ["open_sources", "read_uri"]
