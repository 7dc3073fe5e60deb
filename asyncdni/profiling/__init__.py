"""Measure an experiment's arithmetic op by op, and predict how fast it allows training to be."""
