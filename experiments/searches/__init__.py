"""The searches of hyper-parameters: ``python -m experiments.searches.<name>``."""
