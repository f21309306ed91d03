"""What distinguishes families of checkpoints, as values: names, layout, positions, attention."""
