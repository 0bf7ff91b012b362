"""The experiments of the chapters on continual learning with adapters."""
