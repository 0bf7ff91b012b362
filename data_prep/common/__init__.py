"""What the modules of single data sets share: fetching, checking, building and reading files."""
