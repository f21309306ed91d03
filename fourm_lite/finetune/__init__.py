"""Classifiers from labelled photos: fine-tuning, probes, their photos."""
