"""OSCAR, UNITER and M3P as MMT-Retrieval's users keep them: words and detected regions."""
