"""What is made of runs: records, statistics, tables, pages, plots, traces."""
