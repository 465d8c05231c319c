"""What a model costs: parameters, multiply-adds, activations, memory; and the published tables."""
