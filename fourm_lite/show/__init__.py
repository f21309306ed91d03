"""What people look at: contact sheets, pages of answers."""

from fourm_lite.show.contact_sheet import Cell, contact_sheet

__all__ = ["Cell", "contact_sheet"]
