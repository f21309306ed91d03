"""What a modality is, the table of the known ones, and how their files are read."""
