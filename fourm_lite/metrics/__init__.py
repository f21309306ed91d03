"""Measures of retrieval, classification and generation, and their plots; NumPy only."""
