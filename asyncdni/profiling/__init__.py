"""What an experiment's arithmetic costs here, measured op by op, and how fast that lets it be."""
