"""The experiments of the chapters on multi-task learning."""
