"""An index on disk: its table, its rows, exact and approximate search."""
