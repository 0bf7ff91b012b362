"""What the chapters run: experiments, other people's methods, records, claims, plots."""
