"""Files of others are opened here: regular files alone, and no more than a budget allows."""
