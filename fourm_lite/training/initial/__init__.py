"""Where the weights of a new model begin: from checkpoints, or solved in closed form."""
