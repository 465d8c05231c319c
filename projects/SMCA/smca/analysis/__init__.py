"""The costs of models, the metrics of runs, and the published tables."""
