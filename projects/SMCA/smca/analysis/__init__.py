"""The costs of models, the metrics of runs, the published tables and the config's reference."""
