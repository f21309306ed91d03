"""Tokenizers of pictures and vectors: VQ-VAE, its codebooks, decoders and losses."""
