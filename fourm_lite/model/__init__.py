"""The masked multimodal encoder-decoder."""
