"""Photos of any source, with what is said of them: one reader for everything that takes photos."""
