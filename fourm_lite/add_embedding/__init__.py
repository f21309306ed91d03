"""A model gets a modality more: the vectors of any embedding network."""
