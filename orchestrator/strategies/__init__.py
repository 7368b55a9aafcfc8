"""How gradients and shards move between workers: one file for each strategy."""
