"""Tokenizers of text, and structured values as text."""
