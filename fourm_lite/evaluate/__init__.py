"""Evaluations by their published protocols: retrieval, classes, any-to-any, tokenizers."""
