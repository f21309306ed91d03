"""How sure an answer is: what is measured of it, its probability, and learning both."""
