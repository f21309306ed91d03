"""A checkpoint grows by a modality: the vectors of any embedding network."""
