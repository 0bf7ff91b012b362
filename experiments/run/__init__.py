"""What every chapter runs on: parameters, records, claims, tables, plots, provenance."""
