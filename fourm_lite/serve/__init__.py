"""A search service over HTTP with a page to search in: `fourm-lite serve`."""
