"""From chapters to the rendered book: the steps that the Snakefile calls."""
