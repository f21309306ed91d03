"""Measures, protocols and plots of retrieval and of kNN; NumPy only, knows no model."""
