"""The items that an index takes, under the name by which scripts import them; see `photos.item`."""

from fourm_lite.photos.item import Item, Skipped, Stream

__all__ = ["Item", "Skipped", "Stream"]
