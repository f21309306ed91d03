"""MobileCLIP from Apple's own files: both towers, their tokenizer and preprocessing."""
