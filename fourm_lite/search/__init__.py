"""Search end to end: models, networks and indexes joined into queries, answers and figures."""
