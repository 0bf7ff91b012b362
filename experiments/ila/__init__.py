"""The experiments of the chapters on layers of language models."""
