"""From a dataset section to rows of tokens: sources, tokenizer, preparation, order, mixture."""
