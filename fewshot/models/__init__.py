"""Networks without hidden state: what they compute depends on parameters and input alone."""
