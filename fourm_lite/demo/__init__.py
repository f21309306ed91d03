"""The demo: a gallery, an index, searches and generation, shown on one page."""
