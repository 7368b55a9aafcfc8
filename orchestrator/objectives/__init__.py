"""What the loss is: one file for each objective."""
