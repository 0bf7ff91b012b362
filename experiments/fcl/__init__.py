"""The experiments of the chapters on few-shot continual learning."""
