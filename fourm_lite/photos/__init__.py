"""Photos of any source, with their captions and columns: one reader for all."""
